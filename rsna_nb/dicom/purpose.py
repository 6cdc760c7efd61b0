"""What a header says an image is: a mammogram or not, of which breast and view, spot or magnified, of which pixels.

Files other than mammograms are refused. What is odd about a mammogram becomes a note. Only words of the standard are
returned: free text of a header can name a person.
"""

from dataclasses import dataclass

from pydicom import Dataset

from rsna_nb.dicom.elements import first_number, is_stated, items, two_numbers, words
from rsna_nb.dicom.errors import UnreadableError

# Modalities (PS3.3 C.7.3.1.1.1) that are no projection radiographs: other images, documents, plans and signals.
NO_RADIOGRAPHS = frozenset(
    "AR ASMT AU BDUS BI BMD CFM CT CTPROTOCOL DG DMS DOC EC ECG EEG EMG EOG EPS ES FA FID FS GM HD IOL IVOCT IVUS "
    "KER KO LEN LS M3D MA MR MS NM OAM OCT OP OPM OPT OPTBSV OPTENF OPV OSS PLAN POS PR PT REG RESP RTDOSE RTIMAGE "
    "RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV SEG SM SMR SR SRF ST STAIN TEXTUREMAP TG US VA VF XAPROTOCOL "
    "XC".split()
)
# Values of pictures that are no mammograms. Those of ConversionType are a scanned document and a drawing; those of
# SeriesDescription are CBIS-DDSM's, and no other text is expected there.
NO_MAMMOGRAMS = {
    "ImageType": ("SCREEN SAVE", "SCREEN_SAVE", "SCREENSHOT", "LOCALIZER", "DOSE REPORT", "DOSE_REPORT"),
    "ConversionType": ("SD", "DRW"),
    "SeriesDescription": ("ROI MASK IMAGES", "CROPPED IMAGES"),
}
FOR_PROCESSING_STORAGE = "1.2.840.10008.5.1.4.1.1.1.2.1"  # Digital Mammography X-Ray Image Storage - For Processing

# Views (PS3.16 CID 4014) by their codes in SNOMED CT and in the older SRT, which is also written SNM3.
VIEW_CODES = {
    **dict.fromkeys(("399162004", "R-10242"), "CC"),
    **dict.fromkeys(("399368009", "R-10226"), "MLO"),
    **dict.fromkeys(("399260004", "R-10224"), "ML"),
    **dict.fromkeys(("399352003", "R-10228"), "LM"),
    **dict.fromkeys(("399099002", "R-10230"), "LMO"),
    **dict.fromkeys(("399196006", "R-10244"), "FB"),
    **dict.fromkeys(("399188001", "R-102D0"), "SIO"),
    **dict.fromkeys(("441555000", "R-40AAA"), "ISO"),
    **dict.fromkeys(("399192008", "R-1024A"), "XCCL"),
    **dict.fromkeys(("399101009", "R-1024B"), "XCCM"),
}
VIEWS = {*VIEW_CODES.values(), "XCC", "AT", "CV", "TAN"}  # words of ViewPosition that are compared with a table's
MODIFIER_NOTES = {  # of CID 4015, likewise
    **dict.fromkeys(("399163009", "R-102D6"), "magnified"),
    **dict.fromkeys(("399055006", "R-102D7"), "spot view"),
}
PADDLE_NOTES = {"MAG": "magnified", "SPOT": "spot view"}  # part of PaddleDescription, such as "10CM MAG"
RESCALING = ("RescaleSlope", "RescaleIntercept")
MAGNIFIED = 1.2  # magnification factor of an image above which it is noted; contact views have about 1.0 to 1.1
SQUARE = 0.01  # a pixel is square if its sides differ by no more than this share
MOST_OBLONG = 4.0  # a ratio of sides beyond this is a damaged header


@dataclass(frozen=True)
class Purpose:
    """What a header says about a mammogram. The attributes are those of `reader.Reading`."""

    aspect: float
    laterality: str
    view: str
    notes: tuple[str, ...]


def check_purpose(dataset: Dataset) -> None:
    """Raise `UnreadableError` if the header says that the file holds no radiograph, or no whole breast."""
    for modality in words(dataset, "Modality"):
        if modality in NO_RADIOGRAPHS:
            raise UnreadableError(f"not a radiograph: Modality (0008,0060) is {modality}")
    for keyword, refused in NO_MAMMOGRAMS.items():
        for word in words(dataset, keyword):
            if word in refused:
                raise UnreadableError(
                    f"a screen, document, localizer, mask or crop, not a mammogram: {keyword} is {word}"
                )


def purpose_of(dataset: Dataset) -> Purpose:
    """Return what the header says about a mammogram. Attributes that are absent say nothing and are not noted."""
    aspect, is_odd = _aspect(dataset)
    found = {
        "modality": any(modality != "MG" for modality in words(dataset, "Modality")),
        "for processing": words(dataset, "PresentationIntentType") == ["FOR PROCESSING"]
        or words(dataset, "SOPClassUID") == [FOR_PROCESSING_STORAGE],
        **dict.fromkeys(_view_notes(dataset), True),
        "aspect": is_odd,
        "rescale": first_number(dataset, "RescaleSlope") == 0
        or any(is_stated(dataset, name) and first_number(dataset, name) is None for name in RESCALING),
    }
    return Purpose(aspect, _laterality(dataset), _view(dataset), tuple(note for note in found if found[note]))


def _view_notes(dataset: Dataset) -> list[str]:
    """Return "magnified" and "spot view" where a modifier of the view, the paddle or the magnification says so."""
    places = [dataset, *items(dataset, "ViewCodeSequence")]
    modifiers = [item for place in places for item in items(place, "ViewModifierCodeSequence")]
    notes = [MODIFIER_NOTES[code] for item in modifiers for code in words(item, "CodeValue") if code in MODIFIER_NOTES]
    paddle = " ".join(words(dataset, "PaddleDescription"))
    notes += [note for word, note in PADDLE_NOTES.items() if word in paddle]
    if (first_number(dataset, "EstimatedRadiographicMagnificationFactor") or 1) > MAGNIFIED:
        notes.append("magnified")
    return sorted(set(notes))


def _laterality(dataset: Dataset) -> str:
    """Return "L" or "R", or "" if the header says neither."""
    groups = items(dataset, "SharedFunctionalGroupsSequence")
    frames = [frame for group in groups for frame in items(group, "FrameAnatomySequence")]
    stated = words(dataset, "ImageLaterality") + words(dataset, "Laterality")
    stated += [side for place in (dataset, *frames) for side in words(place, "FrameLaterality")]
    return next((side for side in stated if side in ("L", "R")), "")


def _view(dataset: Dataset) -> str:
    """Return the abbreviation of the view, or "" if the header says none that is known."""
    codes = [code for item in items(dataset, "ViewCodeSequence") for code in words(item, "CodeValue")]
    stated = [*words(dataset, "ViewPosition"), *(VIEW_CODES.get(code, "") for code in codes)]
    return next((view for view in stated if view in VIEWS), "")


def _aspect(dataset: Dataset) -> tuple[float, bool]:
    """Return the height of a pixel divided by its width, and whether to note it.

    A ratio that no detector has is noted as well, and 1 is returned.
    """
    stated = (two_numbers(dataset, keyword) for keyword in ("PixelAspectRatio", "ImagerPixelSpacing", "PixelSpacing"))
    height, width = next(filter(None, stated), (1.0, 1.0))  # between rows, between columns
    aspect = height / width
    if abs(aspect - 1) <= SQUARE:
        return 1.0, False
    return (aspect if 1 / MOST_OBLONG <= aspect <= MOST_OBLONG else 1.0), True
