"""Export a run for another runtime, checked against the run, with a model card beside it.

python -m rsna_nb.export <run> --to onnx|savedmodel|litert [--out path] [--runs-dir runs]
"""

import argparse
import logging
import sys
from pathlib import Path

from rsna_nb.config import ConfigError, resolve
from rsna_nb.export import FORMATS, ExportError, export_run
from rsna_nb.runs import RunError, load_run, log_to_console


def main(arguments: list[str] | None = None) -> None:
    """Run the command line: print the path of the export, or exit with one line that says why there is none."""
    parser = argparse.ArgumentParser(prog="python -m rsna_nb.export", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", help="a run's id or path")
    parser.add_argument("--to", required=True, choices=FORMATS, help="the format")
    parser.add_argument("--out", default="", help="path of the file, or of the folder for savedmodel")
    parser.add_argument("--runs-dir", default="runs", help="folder that contains the run folders")
    given = parser.parse_args(arguments)
    log_to_console()
    logging.getLogger().addHandler(logging.NullHandler())  # else a library's logging.warning adds one that prints
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # tf2onnx calls functions that TensorFlow deprecates
    try:
        if Path(given.run).name == given.run and (resolve(given.runs_dir) / "ensembles" / given.run).is_dir():
            raise ExportError(f"{given.run} is an ensemble: export its runs one by one and combine their scores")
        print(export_run(load_run(given.run, given.runs_dir), given.to, given.out))
    except (ConfigError, ExportError, OSError, RunError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
