"""Writes the DICOM objects of one scoring."""

import importlib.util
import io
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from pydicom.dataset import Dataset

from rsna_nb.dicom import read_header
from rsna_nb.dicom_out.algorithm import Algorithm
from rsna_nb.dicom_out.capture import capture
from rsna_nb.dicom_out.report import report
from rsna_nb.dicom_out.sources import Source, sources_of
from rsna_nb.system import write_whole

log = logging.getLogger(__name__)


class DicomOutError(RuntimeError):
    """DICOM objects cannot be written; the message says what to do."""


class DicomResults:
    """Writes a capture for each image while it is scored, and at the end the reports.

    A file <folder>/<StudyInstanceUID>/<SOPInstanceUID>.dcm is written for each object.
    """

    def __init__(self, folder: Path, images: pd.DataFrame, model: str, parameters: Sequence[str]) -> None:
        """Read the headers of the files.

        Parameters
        ----------
        folder
            Where the objects are written.
        images
            A row for each file: path, laterality ("L", "R" or "") and view ("" if unknown).
        model, parameters
            What identifies the algorithm: the name of the run or ensemble, and in words what else decides its scores.

        Raises `DicomOutError` if highdicom is missing.
        """
        if importlib.util.find_spec("highdicom") is None:
            raise DicomOutError("DICOM objects need the package highdicom: pip install 'rsna_nb[dicom-out]'")
        self.folder, self.images, self.algorithm = folder, images, Algorithm(model, parameters)
        self.sources = sources_of(images["path"])

    def write_capture(self, row: int, picture: np.ndarray) -> None:
        """Write the picture of file `row` with its heat map, uint8 (height, width, 3) in RGB, if it can have one."""
        source = self.sources[row]
        if isinstance(source, str):
            return
        try:
            header = read_header(source.path)
            side = self.images["laterality"].iloc[row]
            self._write(capture(picture, source, header, side, row + 1, self.algorithm), source, header)
        # A damaged header makes pydicom and highdicom raise nearly any built-in exception, and a disk can be full: the
        # tables of scores are written all the same.
        except Exception as error:
            self.sources[row] = f"it could not be made, {_reason(error)}"

    def write_reports(self, scores: pd.DataFrame) -> list[str]:
        """Write a report for each study, and log how many files lack an object.

        Parameters
        ----------
        scores
            A row for each file, with score and error.

        Returns
        -------
        For each file a note that says why it lacks one; "" if it lacks none, or could not be scored.
        """
        rows = {row: source for row, source in enumerate(self.sources) if isinstance(source, Source)}
        table = pd.DataFrame(list(rows.values()), columns=Source._fields, index=list(rows), dtype=object)
        table = table.join(self.images[["laterality", "view"]]).join(scores[["score", "error"]])
        for _, study in table.groupby(["study", "patient_id"], sort=False):
            self._write_report(study)
        scored = scores["error"].eq("")
        notes = [
            f"no DICOM object: {source}" if readable and isinstance(source, str) else ""
            for source, readable in zip(self.sources, scored, strict=True)
        ]
        if missing := [(path, note) for path, note in zip(self.images["path"], notes, strict=True) if note]:
            log.warning("%d of %d scored files, first %s: %s", len(missing), scored.sum(), *missing[0])
        return notes

    def _write_report(self, study: pd.DataFrame) -> None:
        scored = study.index[study["error"] == ""]
        if not len(scored):
            return
        source = self.sources[scored[0]]
        assert isinstance(source, Source)
        try:
            self._write(report(study, self.algorithm), source, read_header(source.path))
        except Exception as error:  # as above
            for row in scored:
                self.sources[row] = f"its study's report could not be made, {_reason(error)}"

    def _write(self, result: Dataset, source: Source, header: Dataset) -> None:
        """Write an object with the attributes of patient and study of a header, as they are."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's warnings quote the values of the header
            result.copy_patient_and_study_information(header)
            if "SpecificCharacterSet" in header:
                result["SpecificCharacterSet"] = header["SpecificCharacterSet"]
            content = io.BytesIO()
            result.save_as(content, enforce_file_format=True)
        write_whole(self.folder / source.study / f"{result.SOPInstanceUID}.dcm", content.getvalue())


def _reason(error: Exception) -> str:
    """The class of an error, and of one of the disk its text; other texts may quote a patient's name."""
    return f"{type(error).__name__}: {error}" if isinstance(error, OSError) else type(error).__name__
