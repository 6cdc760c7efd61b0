"""The detector: a backbone, pooling, for breasts a combination of their images, and a head."""

from rsna_nb.model.breast_scores import attention_of, score_breasts
from rsna_nb.model.breasts import OTHER_VIEW, Breasts
from rsna_nb.model.detector import (
    POLICIES,
    body_of,
    build_model,
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
    "OTHER_VIEW",
    "POLICIES",
    "Breasts",
    "attention_of",
    "body_of",
    "build_model",
    "dtype_policy",
    "head_of",
    "layers_from",
    "layers_in",
    "norm_of",
    "open_backbone",
    "parts_of",
    "score_breasts",
    "weights_file",
]
