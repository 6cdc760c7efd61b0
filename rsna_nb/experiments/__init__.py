"""Many trainings: cross-validation, and the search for the best settings."""

from rsna_nb.experiments import cross_validation, search_space, tuning

__all__ = ["cross_validation", "search_space", "tuning"]
