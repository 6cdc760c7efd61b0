"""Many runs -> one score for each image, what combining them gains, and a submission.

`submission` scores files and therefore needs TensorFlow, which takes seconds to start. It is imported only on
request: `from rsna_nb.ensemble import submission`.
"""

from types import ModuleType

from rsna_nb.ensemble import ensemble_gain
from rsna_nb.ensemble.combine import Ensemble
from rsna_nb.ensemble.files import load, write
from rsna_nb.ensemble.model_pool import find_runs, gather

submission: ModuleType  # a module of this package, see above

__all__ = ["Ensemble", "ensemble_gain", "find_runs", "gather", "load", "submission", "write"]
