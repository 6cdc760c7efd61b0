"""A name -> a network from a grey picture in 0-1, (height, width, 1), to its last feature map."""

from rsna_nb.backbones.pretrained import WeightsError
from rsna_nb.backbones.registry import BACKBONES, Backbone, build_backbone

__all__ = ["BACKBONES", "Backbone", "WeightsError", "build_backbone"]
