"""Many runs -> one score for each image, what combining them gains, and a submission.

`submission` scores files and therefore needs TensorFlow, which takes seconds to start. It is imported only by who asks
for it by name: `from rsna_nb.ensemble import submission`.
"""

from rsna_nb.ensemble import ensemble_gain
from rsna_nb.ensemble.combine import WAYS, Ensemble, load, write
from rsna_nb.ensemble.model_pool import ModelPool, find_runs, gather

__all__ = ["WAYS", "Ensemble", "ModelPool", "ensemble_gain", "find_runs", "gather", "load", "submission", "write"]
