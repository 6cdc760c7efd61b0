"""Many runs -> one score for each image, what combining them gains, and a submission."""

from rsna_nb.ensemble import combine, ensemble_gain, model_pool, submission

__all__ = ["combine", "ensemble_gain", "model_pool", "submission"]
