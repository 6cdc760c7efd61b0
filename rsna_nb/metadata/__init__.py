"""The table of a data set -> a checked one, a row an image, and where the data set comes from."""

from rsna_nb.metadata import kaggle, table
from rsna_nb.metadata.table import DEMO_DIR, INPUTS, Layout, MetadataError, find_data, load_metadata

__all__ = ["DEMO_DIR", "INPUTS", "Layout", "MetadataError", "find_data", "kaggle", "load_metadata", "table"]
