"""Every figure that a notebook shows: each function takes data and returns a matplotlib Figure."""

from rsna_nb.plots.comparison import paired_differences, subgroup_forest
from rsna_nb.plots.data import file_kinds, picture_grid, reading_times, steps_with_histograms, table_overview
from rsna_nb.plots.ensemble import score_correlations, submitted_scores
from rsna_nb.plots.evaluation import (
    confusion_matrix,
    example_breasts,
    operating_points,
    precision_recall_curve,
    reliability_curves,
    roc_curve,
    score_distributions,
)
from rsna_nb.plots.explain import breast_overlay, file_overlay, overlays, perturbation_curves, pointing_scores
from rsna_nb.plots.folds import fold_forest, fold_roc, leave_one_group_out_forest
from rsna_nb.plots.imbalance import (
    accuracy_trap,
    batch_positives,
    constant_losses,
    prevalence_forest,
    prior_correction_curve,
    shortcut_aucs,
)
from rsna_nb.plots.pictures import augmented, contact_sheet, sample_batch
from rsna_nb.plots.training import class_counts, training_curves
from rsna_nb.plots.tuning import setting_importances, setting_slices, trial_history

__all__ = [
    "accuracy_trap",
    "augmented",
    "batch_positives",
    "breast_overlay",
    "class_counts",
    "confusion_matrix",
    "constant_losses",
    "contact_sheet",
    "example_breasts",
    "file_kinds",
    "file_overlay",
    "fold_forest",
    "fold_roc",
    "leave_one_group_out_forest",
    "operating_points",
    "overlays",
    "paired_differences",
    "perturbation_curves",
    "picture_grid",
    "pointing_scores",
    "precision_recall_curve",
    "prevalence_forest",
    "prior_correction_curve",
    "reading_times",
    "reliability_curves",
    "roc_curve",
    "sample_batch",
    "score_correlations",
    "score_distributions",
    "setting_importances",
    "setting_slices",
    "shortcut_aucs",
    "steps_with_histograms",
    "subgroup_forest",
    "submitted_scores",
    "table_overview",
    "training_curves",
    "trial_history",
]
