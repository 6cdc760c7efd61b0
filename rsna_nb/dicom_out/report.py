"""The scores of a study -> a Structured Report by template TID 1500 (PS3.16)."""

from collections.abc import Iterator
from typing import Any

import pandas as pd
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from rsna_nb.dicom import without_text
from rsna_nb.dicom_out.algorithm import MARK, Algorithm, ascii_of
from rsna_nb.dicom_out.sources import Source

SERIES = 9004
MAMMOGRAPHY, BREAST = Code("71651007", "SCT", "Mammography"), Code("76752008", "SCT", "Breast")
SIDES = {"L": Code("7771000", "SCT", "Left"), "R": Code("24028007", "SCT", "Right")}
SCORE = Code("SCORE", "99RSNA_NB", "Score of the detector, 0 to 1, not a probability")
NO_UNITS, COMMENT = Code("1", "UCUM", "no units"), Code("121106", "DCM", "Comment")
TYPE_2 = "PatientID PatientName PatientBirthDate PatientSex AccessionNumber StudyID StudyDate StudyTime".split()


def report(study: pd.DataFrame, algorithm: Algorithm) -> Dataset:
    """Make a report without the attributes of patient and study.

    Parameters
    ----------
    study
        A row for each image of the study, with the fields of `Source`, laterality, view, score and error. At least one
        has no error.
    algorithm
        The model of the scores.
    """
    from highdicom.coding_schemes import CodingSchemeIdentificationItem
    from highdicom.sr import ComprehensiveSR, TextContentItem

    scored = study[study["error"] == ""]
    sources = [Source(*row) for row in scored[list(Source._fields)].to_numpy()]
    (content,) = _content(scored, algorithm)
    for text in _comments(study):  # before the scores, which are last
        last = len(content.ContentSequence) - 1
        content.ContentSequence.insert(last, TextContentItem(COMMENT, text, "CONTAINS"))
    return ComprehensiveSR(
        evidence=[_evidence(source) for source in sources],
        content=content,
        sop_instance_uid=algorithm.uid(sources[0].study, *scored["instance"]),
        instance_number=1,
        coding_schemes=[CodingSchemeIdentificationItem("99RSNA_NB", name="Codes of the package rsna_nb")],
        **algorithm.series(sources[0], SERIES, "Scores"),
    )


def _content(scored: pd.DataFrame, algorithm: Algorithm) -> Any:
    """A measurement report with a group for each image and each breast."""
    from highdicom import sr

    device = sr.DeviceObserverIdentifyingAttributes(
        algorithm.uid(), algorithm.name, "rsna_nb", f"rsna_nb {algorithm.version}"
    )
    observer = sr.ObserverContext(sr.CodedConcept("121007", "DCM", "Device"), device)
    groups = [_group(f"image {row.view}".strip(), scored.loc[[row.Index]], algorithm) for row in scored.itertuples()]
    known = scored[scored["laterality"].isin(list(SIDES))]
    groups += [_group("breast", rows, algorithm) for _, rows in known.groupby("laterality")]
    return sr.MeasurementReport(sr.ObservationContext(observer_device_context=observer), MAMMOGRAPHY, groups)


def _group(what: str, rows: pd.DataFrame, algorithm: Algorithm) -> Any:
    """A group with one score: the mean of the images in `rows`, which it refers to."""
    from highdicom import sr

    side = rows["laterality"].iloc[0]
    references = zip(rows["sop_class"], rows["instance"], strict=True)
    score = sr.Measurement(
        SCORE,
        round(float(rows["score"].mean()), 6),
        NO_UNITS,
        referenced_images=[sr.SourceImageForMeasurement(*each) for each in references],
    )
    return sr.MeasurementsAndQualitativeEvaluations(
        sr.TrackingIdentifier(algorithm.uid(what, *rows["instance"]), f"{side} {what}".strip()),
        algorithm_id=sr.AlgorithmIdentification(f"rsna_nb {algorithm.name}", algorithm.version, algorithm.parameters),
        finding_sites=[sr.FindingSite(BREAST, SIDES.get(side))],
        measurements=[score],
    )


def _comments(study: pd.DataFrame) -> Iterator[str]:
    yield f"{MARK}. Scores of a research model that no authority has approved; a score is not a probability."
    yield "The score of a breast is the mean over the images of this study that could be scored."
    for row in study[study["error"] != ""].itertuples():
        yield ascii_of(f"Not scored: the image {row.instance}: {without_text(str(row.error))}")


def _evidence(source: Source) -> Dataset:
    """What highdicom reads of an image that a report refers to."""
    image = Dataset()
    image.StudyInstanceUID, image.SeriesInstanceUID = source.study, source.series
    image.SOPInstanceUID, image.SOPClassUID = source.instance, source.sop_class
    for keyword in TYPE_2:  # those of the source are copied later: highdicom refuses unusual ones
        setattr(image, keyword, "")
    return image
