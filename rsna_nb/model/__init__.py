"""The detector: a backbone, pooling, for breasts a combination of their images, and a head."""

from rsna_nb.model.breast_scores import attention_of, score_breasts
from rsna_nb.model.breasts import OPPOSITE, OTHER_VIEW, Breasts
from rsna_nb.model.combination import is_own
from rsna_nb.model.detector import (
    POLICIES,
    body_of,
    build_model,
    combination_of,
    dtype_policy,
    head_of,
    layers_from,
    layers_in,
    norm_of,
    open_backbone,
    parts_of,
    weights_file,
)

__all__ = [
    "OPPOSITE",
    "OTHER_VIEW",
    "POLICIES",
    "Breasts",
    "attention_of",
    "body_of",
    "build_model",
    "combination_of",
    "dtype_policy",
    "head_of",
    "is_own",
    "layers_from",
    "layers_in",
    "norm_of",
    "open_backbone",
    "parts_of",
    "score_breasts",
    "weights_file",
]
