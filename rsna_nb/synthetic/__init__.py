"""A generated screening data set in the layout of the RSNA competition, for trying everything without real data."""

from rsna_nb.synthetic.dataset import generate
from rsna_nb.synthetic.table import make_table

__all__ = ["generate", "make_table"]
