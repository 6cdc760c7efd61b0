"""Where a model looked: heat maps, and tests of these maps."""

from rsna_nb.explain.breasts import ExplainedBreast
from rsna_nb.explain.deletion import Curves
from rsna_nb.explain.explanation import (
    ExplainedImages,
    FileMap,
    describe,
    explain_examples,
    first_breast,
    map_in_file,
    perturbation_curves,
    pointing_game,
    write_results,
)
from rsna_nb.explain.file_maps import maps_in_files
from rsna_nb.explain.maps import grad_cam, heat_maps
from rsna_nb.explain.pointing import hit_rates, targets

__all__ = [
    "Curves",
    "ExplainedBreast",
    "ExplainedImages",
    "FileMap",
    "describe",
    "explain_examples",
    "first_breast",
    "grad_cam",
    "heat_maps",
    "hit_rates",
    "map_in_file",
    "maps_in_files",
    "perturbation_curves",
    "pointing_game",
    "targets",
    "write_results",
]
