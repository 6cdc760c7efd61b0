"""How good scores are, and with what uncertainty: metrics, intervals over women, thresholds and calibration."""

from rsna_nb.metrics import calibration, operating
from rsna_nb.metrics.calibration import logit, prior_correction, reliability, wilson
from rsna_nb.metrics.folds import fold_metrics, within_folds
from rsna_nb.metrics.intervals import (
    Women,
    bootstrap,
    difference,
    evaluator,
    matched,
    resampled,
    resampled_intervals,
)
from rsna_nb.metrics.limits import UNDEFINED, Interval, draws_interval, exact_limits
from rsna_nb.metrics.operating import (
    PUBLISHED,
    RATES,
    CrossFit,
    assign_folds,
    cross_fitted,
    rate_intervals,
    threshold_by_f1,
    threshold_text,
)
from rsna_nb.metrics.placements import clustered_auc, share_below
from rsna_nb.metrics.predictions import (
    BreastScore,
    by_breast,
    by_image,
    check_predictions,
    class_weights,
    cross_entropy,
    refuse,
    scores_breasts,
    split_breasts,
    summary,
)
from rsna_nb.metrics.training_weights import training_class_weights
from rsna_nb.metrics.weighted import PREPARE, MetricsError, auc, average_precision, pf1

__all__ = [
    "PREPARE",
    "PUBLISHED",
    "RATES",
    "UNDEFINED",
    "BreastScore",
    "CrossFit",
    "Interval",
    "MetricsError",
    "Women",
    "assign_folds",
    "auc",
    "average_precision",
    "bootstrap",
    "by_breast",
    "by_image",
    "calibration",
    "check_predictions",
    "class_weights",
    "clustered_auc",
    "cross_entropy",
    "cross_fitted",
    "difference",
    "draws_interval",
    "evaluator",
    "exact_limits",
    "fold_metrics",
    "logit",
    "matched",
    "operating",
    "pf1",
    "prior_correction",
    "rate_intervals",
    "refuse",
    "reliability",
    "resampled",
    "resampled_intervals",
    "scores_breasts",
    "share_below",
    "split_breasts",
    "summary",
    "threshold_by_f1",
    "threshold_text",
    "training_class_weights",
    "wilson",
    "within_folds",
]
