"""Every figure that a notebook shows: each function takes data and returns a matplotlib Figure."""

from rsna_nb.plots.pictures import contact_sheet, sample_batch
from rsna_nb.plots.preparing import reading_times
from rsna_nb.plots.training import class_counts, training_curves

__all__ = ["class_counts", "contact_sheet", "reading_times", "sample_batch", "training_curves"]
