"""Where values lie among other values, and the variance of the AUC that follows from it."""

import numpy as np


def share_below(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each value, the share of `others` that are smaller; equal ones count half.

    The result has the shape of `values` and lies in 0-1. It is `scipy.stats.percentileofscore(..., kind="mean") / 100`,
    which compares every value with every other: 54,706 scores would take 3 GB there, and take a sort here.

    Examples
    --------
    >>> share_below(np.array([1, 2, 3]), np.array([0, 2])).tolist()
    [0.5, 0.75, 1.0]
    """
    ordered = np.sort(others)
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / (2 * len(ordered))


def clustered_auc(labels: np.ndarray, scores: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """The AUC and its variance where the rows of one cluster, such as a woman's two breasts, are not independent.

    The formula is that of Obuchowski (1997, Biometrics 53:567). With every row in a cluster of its own it is
    DeLong's variance. Neither SciPy nor scikit-learn has it.

    Parameters
    ----------
    labels
        (n,), 1 for positive and 0 for negative rows. Both must occur, each in at least two clusters.
    scores
        (n,), on any scale.
    clusters
        (n,), the name of each row's cluster.

    Returns
    -------
    The AUC in 0-1, and its variance (the square of its standard error).
    """
    positive = labels == 1
    above, below = scores[positive], scores[~positive]
    auc_of_positives, auc_of_negatives = share_below(above, below), 1 - share_below(below, above)
    auc = float(auc_of_positives.mean())
    names, position = np.unique(clusters, return_inverse=True)
    sums = [
        np.bincount(position[rows], placements - auc, len(names)) / len(placements)
        for rows, placements in ((positive, auc_of_positives), (~positive, auc_of_negatives))
    ]
    inside = [len(np.unique(position[rows])) for rows in (positive, ~positive)]
    variance = sum(count / (count - 1) * (each**2).sum() for count, each in zip(inside, sums, strict=True))
    # A cluster with both labels ties the two sums together. It adds nothing where no cluster has both.
    return auc, float(variance + 2 * len(names) / (len(names) - 1) * (sums[0] * sums[1]).sum())
