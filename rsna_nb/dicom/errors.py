"""Errors of reading: of a file's content, of a file by its path, and of the breast detector."""

from pathlib import Path

from rsna_nb.notebook import UnavailableError


class UnreadableError(ValueError):
    """What is wrong with the content of a file. The message becomes the `reason` of a `DicomError`."""


class DicomError(ValueError):
    """A file that is not a readable mammogram.

    Attributes
    ----------
    path
        The file.
    reason
        What is wrong with it. Text quoted from the file, which may name a person, follows the first colon.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(str(path), reason)  # both arguments, so that the error can be pickled between processes
        self.path, self.reason = str(path), reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class DetectorError(UnavailableError, RuntimeError):
    """The file of a breast detector is missing or damaged, or holds another network."""


def without_text(reason: str) -> str:
    """Return a reason up to its first colon, after which text from the file may be quoted.

    >>> without_text("not a greyscale image: PhotometricInterpretation (0028,0004) is RGB")
    'not a greyscale image'
    """
    return reason.split(":")[0]
