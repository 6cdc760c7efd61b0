"""Where a model looked: maps, and tests of whether the maps are true."""

from rsna_nb.explain import deletion, explanation, maps, pointing
from rsna_nb.explain.deletion import Curves
from rsna_nb.explain.explanation import Explained, InFile
from rsna_nb.explain.maps import grad_cam

__all__ = ["Curves", "Explained", "InFile", "deletion", "explanation", "grad_cam", "maps", "pointing"]
