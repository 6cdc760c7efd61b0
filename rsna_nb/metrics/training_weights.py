"""Which class weights the scores of a run contain."""

from rsna_nb.config import RunConfig
from rsna_nb.metrics.predictions import class_weights_of


def training_class_weights(
    config: RunConfig, images: int, positives: int, sampled_share: float = 0.5
) -> dict[int, float] | None:
    """The class weights that a run's scores contain and that `prior_correction` can correct them for.

    Class weights have a known effect on the scores. A fixed share of positives in every batch has the same effect as
    class weights of that share. Scores of unweighted training contain no weights. The focal loss and soft positive
    labels give scores that are not probabilities and cannot be corrected in this way.

    Parameters
    ----------
    config
        Its `imbalance` and `positive_label` are used.
    images, positives
        How many training images there were, and how many of them had cancer.
    sampled_share
        The share of positives in balanced batches; only used for these.

    Returns
    -------
    dict[int, float] | None
        {0: weight, 1: weight}, or None if there is nothing to correct, or no way to correct it.

    Examples
    --------
    >>> training_class_weights(RunConfig(imbalance="class_weight"), images=100, positives=20)
    {0: 0.625, 1: 2.5}
    >>> training_class_weights(RunConfig(imbalance="focal"), images=100, positives=20) is None
    True
    """
    if config.positive_label < 1 or config.imbalance not in ("class_weight", "balanced_batches"):
        return None
    return class_weights_of(images, positives, 0.5 if config.imbalance == "class_weight" else sampled_share)
