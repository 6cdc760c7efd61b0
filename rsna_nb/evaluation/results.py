"""Results as JSON files in the run folder, with another name for each set of parameters."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rsna_nb.metrics import CrossFit, Interval
from rsna_nb.notebook import Unavailable
from rsna_nb.runs import Run
from rsna_nb.system import write_whole

DEFAULTS = {"compare": "", "draws": 2000, "pictures": 6}  # the parameters of 04_evaluate


def result_path(run: Run, name: str, **parameters: Any) -> Path:
    """The file of a result: `name` in the run folder, with each parameter that is not the default in its name.

    An evaluation therefore never overwrites one with other parameters. It overwrites one with the same parameters,
    because these give the same result.

    Examples
    --------
    >>> run = Run(Path("runs/20261123-101530-demo"))
    >>> result_path(run, "evaluation.json", compare="", draws=2000).name
    'evaluation.json'
    >>> result_path(run, "evaluation.json", compare="20261124-090000-demo", draws=200).name
    'evaluation-compare-20261124-090000-demo-draws-200.json'
    """
    given = [f"-{key}-{_as_name(value)}" for key, value in parameters.items() if value != DEFAULTS[key]]
    return run.path / f"{Path(name).stem}{''.join(given)}{Path(name).suffix}"


def _as_name(value: Any) -> str:
    """A parameter in a file's name: of a path its last part, and four letters that tell equal ones apart."""
    path = Path(str(value))
    if path.parent == Path():
        return path.name
    return f"{path.name}-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:4]}"


def write_results(run: Run, results: Mapping[str, Any], **parameters: Any) -> Path:
    """Write the results of 04_evaluate as JSON (`plain`) and return the file (`result_path`)."""
    path = result_path(run, "evaluation.json", **parameters)
    content = plain({**results, "parameters": {**DEFAULTS, **parameters}})
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())
    return path


def plain(value: Any) -> Any:
    """`value` in types that JSON has: intervals without their draws, tables as lists of rows, NaN as null.

    What is unavailable becomes {"unavailable": reason}.
    """
    if isinstance(value, Unavailable):
        return {"unavailable": value.reason}
    if isinstance(value, Interval):
        return {name: plain(getattr(value, name)) for name in ("estimate", "low", "high")}
    if isinstance(value, CrossFit):
        return {name: plain(getattr(value, name)) for name in ("thresholds", "point", "in_sample", "optimism")}
    if isinstance(value, pd.DataFrame):
        named = value if isinstance(value.index, pd.RangeIndex) else value.reset_index()
        return [plain(row) for row in named.to_dict("records")]
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    return None if isinstance(value, float) and not np.isfinite(value) else value
