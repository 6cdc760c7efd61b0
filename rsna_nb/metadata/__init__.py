"""Find a data set, and convert its table to a checked table with one row per image."""

from rsna_nb.metadata import kaggle
from rsna_nb.metadata.checks import BREAST, MetadataError
from rsna_nb.metadata.folders import announce, find_data, results_folder
from rsna_nb.metadata.kaggle import KaggleError
from rsna_nb.metadata.lesions import lesion_boxes
from rsna_nb.metadata.table import ARCHIVED, INPUTS, describe, load_metadata

__all__ = [
    "ARCHIVED",
    "BREAST",
    "INPUTS",
    "KaggleError",
    "MetadataError",
    "announce",
    "describe",
    "find_data",
    "kaggle",
    "lesion_boxes",
    "load_metadata",
    "results_folder",
]
