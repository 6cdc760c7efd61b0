"""Backbones: a name -> a network from a grey image in 0-1, (height, width, 1), to its last feature map."""

from rsna_nb.backbones.parts import Parts
from rsna_nb.backbones.registry import BACKBONES, Backbone, build_backbone, build_parts
from rsna_nb.backbones.transfer import copy_weights
from rsna_nb.backbones.weights import WeightsError

__all__ = ["BACKBONES", "Backbone", "Parts", "WeightsError", "build_backbone", "build_parts", "copy_weights"]
