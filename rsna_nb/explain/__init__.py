"""Where a model looked: heat maps, and tests of whether the maps are true."""

from rsna_nb.explain.deletion import Curves
from rsna_nb.explain.explanation import (
    ExplainedImages,
    FileMap,
    describe,
    explain_examples,
    explain_images,
    map_in_file,
    perturbation_curves,
    pointing_game,
    write_results,
)
from rsna_nb.explain.maps import METHODS, grad_cam, heat_maps, read_images
from rsna_nb.explain.pointing import count_hits, hit_rates, targets

__all__ = [
    "METHODS",
    "Curves",
    "ExplainedImages",
    "FileMap",
    "count_hits",
    "describe",
    "explain_examples",
    "explain_images",
    "grad_cam",
    "heat_maps",
    "hit_rates",
    "map_in_file",
    "perturbation_curves",
    "pointing_game",
    "read_images",
    "targets",
    "write_results",
]
