"""Import a published detector, or score labelled images with one that was imported.

python -m rsna_nb.import_run --recipe rsna-first-place fold0.pth.tar fold1.pth.tar fold2.pth.tar fold3.pth.tar
    [--roi yolox.pth] [--reading breast] [--name ...] [--runs-dir runs] [--data-dir ... [--table ...]]
python -m rsna_nb.import_run --score <run or ensemble> --data-dir <folder of labelled images> [--table ...]
"""

import argparse
import sys

from rsna_nb import runs
from rsna_nb.backbones import WeightsError
from rsna_nb.config import ConfigError
from rsna_nb.dicom import DetectorError
from rsna_nb.import_run.detectors import import_detector
from rsna_nb.import_run.recipes import RECIPES
from rsna_nb.import_run.scoring import score_labelled
from rsna_nb.metadata import KaggleError, MetadataError
from rsna_nb.prepare import PrepareError
from rsna_nb.runs import RunError

FAULTS = (ConfigError, DetectorError, KaggleError, MetadataError, OSError, PrepareError, RunError, WeightsError)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m rsna_nb.import_run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", help="the detector's files, one for each fold, in the order of the folds")
    parser.add_argument("--recipe", choices=RECIPES, help="the published detector of these files")
    parser.add_argument("--roi", default="", help="file of the breast detector; without one, Otsu's threshold crops")
    parser.add_argument("--reading", default="", help="preprocessing, as the setting; default: as published")
    parser.add_argument("--name", default="", help="name of the ensemble, part of the runs' ids; default: the recipe")
    parser.add_argument("--score", default="", help="an imported run or ensemble that scores the images in --data-dir")
    parser.add_argument("--data-dir", default="", help="folder of labelled images to score")
    parser.add_argument("--table", default="", help="table of the images, if it is not in the folder")
    parser.add_argument("--store-dir", default="", help="folder of the prepared images")
    parser.add_argument("--other-women", action="store_true", help="state that it was not trained on these women")
    parser.add_argument("--runs-dir", default="runs", help="folder that contains the run folders")
    given = parser.parse_args(arguments)
    if bool(given.files) == bool(given.score) or bool(given.files) != bool(given.recipe):
        parser.error("give --recipe and files to import, or --score and --data-dir to score labelled images")
    if given.score and not given.data_dir:
        parser.error("--score needs --data-dir")
    runs.log_to_console()
    try:
        made = []
        if given.files:
            made = import_detector(given.files, given.recipe, given.reading, given.roi, given.name, given.runs_dir)
        if given.data_dir:
            name = given.score or (made[0].id if len(made) == 1 else made[0].config.run_name.removesuffix("-fold0"))
            score_labelled(name, given.data_dir, given.table, given.runs_dir, given.store_dir, given.other_women)
    except FAULTS as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
