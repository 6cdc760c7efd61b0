"""Predictions of runs -> the figures and sentences of 02, 04 and 05, and the HTML report."""

from rsna_nb.evaluation import comparison, imbalance, out_of_fold, single_run, summary
from rsna_nb.evaluation.comparison import differences, on_the_same_images, paired, refuse_seen
from rsna_nb.evaluation.imbalance import constant_loss, group_names, in_order
from rsna_nb.evaluation.out_of_fold import with_fold
from rsna_nb.evaluation.single_run import (
    PREPARE_FIRST,
    STATISTICS,
    Calibration,
    Evaluation,
    class_weights,
    data_folder,
    evaluate,
    find_run,
    held_out,
    main_intervals,
    weighs_nothing,
)
from rsna_nb.evaluation.summary import plain

__all__ = [
    "PREPARE_FIRST",
    "STATISTICS",
    "Calibration",
    "Evaluation",
    "class_weights",
    "comparison",
    "constant_loss",
    "data_folder",
    "differences",
    "evaluate",
    "find_run",
    "group_names",
    "held_out",
    "imbalance",
    "in_order",
    "main_intervals",
    "on_the_same_images",
    "out_of_fold",
    "paired",
    "plain",
    "refuse_seen",
    "single_run",
    "summary",
    "weighs_nothing",
    "with_fold",
]
