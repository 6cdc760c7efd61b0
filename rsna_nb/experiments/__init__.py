"""Many trainings: cross-validation, and the search for the best settings.

`tuning` needs Optuna, which not everybody has installed. It is therefore imported only by who asks for it by name:
`from rsna_nb.experiments import tuning`.
"""

from rsna_nb.experiments import cross_validation

__all__ = ["cross_validation", "tuning"]
