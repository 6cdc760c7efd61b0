"""Many trainings: cross-validation, and the search for the best settings.

`tuning` needs Optuna, which not everybody has installed. It is imported only on request:
`from rsna_nb.experiments import tuning`.
"""

from types import ModuleType

from rsna_nb.experiments import cross_validation

tuning: ModuleType  # a module of this package, see above

__all__ = ["cross_validation", "tuning"]
