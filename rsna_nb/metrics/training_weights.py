"""Which class weights the scores of a training carry."""

from rsna_nb.config import RunConfig
from rsna_nb.metrics.predictions import class_weights_of


def training_class_weights(
    config: RunConfig, images: int, positives: int, sampled_share: float = 0.5
) -> dict[int, float] | None:
    """The class weights that a run's scores carry and that `prior_correction` can correct them for.

    Class weights have a known effect on the scores. So has a fixed share of positives in every batch, which is that of
    class weights of the same share. Scores from unweighted training carry none. Those from the focal loss or with soft
    positive labels are no probabilities, and cannot be corrected like this.

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
        {0: weight, 1: weight}, or None where the scores are to be taken as they are.

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
