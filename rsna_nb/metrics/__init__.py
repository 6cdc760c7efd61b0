"""How good the scores are, and how sure we can be of it."""

from rsna_nb.metrics.figures import PREPARE, MetricsError, auc, average_precision, checked, in_parts, pf1
from rsna_nb.metrics.folds import fold_figures, parts_of, within_folds
from rsna_nb.metrics.intervals import (
    UNDEFINED,
    Interval,
    Women,
    bootstrap,
    bootstrap_many,
    difference,
    exact_limits,
    group_row,
    normal_interval,
    resampled,
    subgroups,
)
from rsna_nb.metrics.predictions import (
    BreastScore,
    by_breast,
    by_image,
    check_predictions,
    class_weights,
    class_weights_of,
    cross_entropy,
    summary,
)

__all__ = [
    "PREPARE",
    "UNDEFINED",
    "BreastScore",
    "Interval",
    "MetricsError",
    "Women",
    "auc",
    "average_precision",
    "bootstrap",
    "bootstrap_many",
    "by_breast",
    "by_image",
    "check_predictions",
    "checked",
    "class_weights",
    "class_weights_of",
    "cross_entropy",
    "difference",
    "exact_limits",
    "fold_figures",
    "group_row",
    "in_parts",
    "normal_interval",
    "parts_of",
    "pf1",
    "resampled",
    "subgroups",
    "summary",
    "within_folds",
]
