"""A run -> one file for another runtime: ONNX, SavedModel or LiteRT, checked against the run, with its model card.

The file takes 8-bit prepared images and returns scores. The command line is in `__main__`:

    python -m rsna_nb.export <run> --to onnx
"""

from rsna_nb.export.exporting import ExportError, export_run
from rsna_nb.export.formats import FORMATS

__all__ = ["FORMATS", "ExportError", "export_run"]
