"""Published detectors -> run folders that the notebooks and `predict` take like any run.

Files of PyTorch are read without PyTorch, and no code in them is run. The command line is in `__main__`:

    python -m rsna_nb.import_run --recipe rsna-first-place fold0.pth.tar fold1.pth.tar fold2.pth.tar fold3.pth.tar
"""

from rsna_nb.import_run.detectors import import_detector
from rsna_nb.import_run.scoring import score_labelled

__all__ = ["import_detector", "score_labelled"]
