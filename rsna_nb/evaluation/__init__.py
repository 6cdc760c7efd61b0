"""Predictions -> metrics, tables and sentences of the notebooks, and the HTML report."""

from rsna_nb.evaluation import comparison, imbalance, out_of_fold, summary
from rsna_nb.evaluation.closing_lines import in_lines
from rsna_nb.evaluation.comparison import differences, on_the_same_images, paired, refuse_seen
from rsna_nb.evaluation.evaluated_run import (
    Evaluation,
    class_weights,
    evaluate,
    find_run,
    held_out,
    weighs_nothing,
    with_fold,
)
from rsna_nb.evaluation.examples import PREPARE_FIRST, data_folder, examples, store_of
from rsna_nb.evaluation.imbalance import constant_loss, group_names, in_order
from rsna_nb.evaluation.results import plain, write_results
from rsna_nb.evaluation.run_metrics import STATISTICS, Calibration, bands, calibrate, main_metrics

__all__ = [
    "PREPARE_FIRST",
    "STATISTICS",
    "Calibration",
    "Evaluation",
    "bands",
    "calibrate",
    "class_weights",
    "comparison",
    "constant_loss",
    "data_folder",
    "differences",
    "evaluate",
    "examples",
    "find_run",
    "group_names",
    "held_out",
    "imbalance",
    "in_lines",
    "in_order",
    "main_metrics",
    "on_the_same_images",
    "out_of_fold",
    "paired",
    "plain",
    "refuse_seen",
    "store_of",
    "summary",
    "weighs_nothing",
    "with_fold",
    "write_results",
]
