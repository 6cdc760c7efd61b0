"""Write a generated screening data set in the layout of the RSNA competition.

    data_dir/train.csv, test.csv, sample_submission.csv, lesions.csv, generated.json
    data_dir/train_images/<patient_id>/<image_id>.dcm, test_images/...

The table comes from one seed, every picture from the seed and its woman's id, so a data set is the same whatever
the number of workers and however often its making was interrupted (with the same versions of NumPy, OpenCV and
imagecodecs). `table.py` makes the women, `anatomy.py` their breasts, `drawing.py` the pictures, `files.py` the files.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from pydicom.uid import generate_uid
from tqdm import tqdm

from rsna_nb.synthetic.anatomy import make_breast
from rsna_nb.synthetic.drawing import Look, draw_mammogram, lesion_boxes
from rsna_nb.synthetic.files import write_dicom
from rsna_nb.synthetic.table import DENSITIES, MACHINES, TEST_COLUMNS, VERSION, Machine, make_table
from rsna_nb.system import locked, processors, remove_parts, write_whole

LESION_COLUMNS = ["patient_id", "image_id", "kind", "cancer", "x_min", "y_min", "x_max", "y_max"]
OWN_FILES = ("train.csv", "test.csv", "train_images", "test_images", "sample_submission.csv", "lesions.csv")


@dataclass(frozen=True)
class DemoSettings:
    """The data set that is generated where the user names none."""

    patients: int = 450
    prevalence: float = 0.4  # share of women with cancer; screening has 0.005, too rare to learn from so few
    seed: int = 7
    scale: float = 0.16  # no breast is lower than 256 rows


DEMO = DemoSettings()


def generate(
    data_dir: str | os.PathLike[str],
    patients: int = DEMO.patients,
    prevalence: float = DEMO.prevalence,
    seed: int = DEMO.seed,
    scale: float = DEMO.scale,
    test_patients: int = 4,
    workers: int | None = None,
) -> Path:
    """Write a data set in the RSNA layout; return at once where the same one is already there.

    Killed and started again with the same arguments, it goes on where it was. `generated.json`, written last,
    says that the data set is complete.

    Parameters
    ----------
    data_dir : path
        Made if missing. The RSNA files go right into it.
    patients, prevalence, seed
        As in `make_table`.
    scale : float
        Pixel size: 1.0 gives the machines' full 2776 x 2082 to 4740 x 3540, 0.16 a sixth of that.
    test_patients : int
        Women in test.csv, whose labels are nowhere.
    workers : int, optional
        Processes; all processors by default. 1 draws in this process. The files do not depend on it.

    Raises
    ------
    ValueError
        If the folder holds other data, or a data set generated with other arguments.
    """
    data_dir = Path(data_dir)
    arguments: dict[str, Any] = {
        "generator_version": VERSION, "patients": patients, "prevalence": prevalence, "seed": seed,
        "scale": scale, "test_patients": test_patients,
    }  # fmt: skip
    if not 0.05 <= scale <= 1:
        raise ValueError(f"scale={scale}: from 0.05 (smaller breasts are a few pixels) to 1 (full size).")
    if not is_complete(data_dir, arguments):
        with locked(data_dir):
            if not is_complete(data_dir, arguments):  # another process may have made it meanwhile
                make_files(data_dir, arguments, workers)
    return data_dir


def make_files(data_dir: Path, arguments: dict[str, Any], workers: int | None) -> None:
    """Draw what is not there yet, and write the tables last."""
    seed, prevalence = arguments["seed"], arguments["prevalence"]
    train = make_table(arguments["patients"], prevalence, seed)
    test = make_test_table(train, arguments["test_patients"], seed)
    write_whole(data_dir / "generating.json", as_json(arguments))
    tasks = [
        Task(rows, data_dir / f"{split}_images", seed, arguments["scale"])
        for split, table in (("train", train), ("test", test))
        for _, rows in table.groupby("patient_id")
    ]
    lesions = [row for rows in draw_all(tasks, workers) for row in rows]
    lesion_table = pd.DataFrame(lesions, columns=LESION_COLUMNS)
    write_csv(lesion_table[lesion_table["image_id"].isin(train["image_id"])], data_dir / "lesions.csv")
    write_csv(train, data_dir / "train.csv")
    write_csv(test[TEST_COLUMNS], data_dir / "test.csv")
    submission = test[["prediction_id"]].drop_duplicates().assign(cancer=prevalence / 2)
    write_csv(submission, data_dir / "sample_submission.csv")
    write_whole(data_dir / "generated.json", as_json(arguments))
    (data_dir / "generating.json").unlink()
    remove_parts(data_dir)


def is_complete(data_dir: Path, arguments: dict[str, Any]) -> bool:
    """Whether the data set is there; an error where something else is."""
    for name in ("generated.json", "generating.json"):
        if (data_dir / name).exists():
            found = json.loads((data_dir / name).read_text())
            wrong = [f"{k}={found.get(k)!r}, not {v!r}" for k, v in arguments.items() if found.get(k) != v]
            if wrong:
                raise ValueError(
                    f"{data_dir} holds a data set generated with {'; '.join(wrong)}. "
                    "Name another folder, or delete this one to generate it anew."
                )
            return name == "generated.json"
    foreign = [name for name in OWN_FILES if (data_dir / name).exists()]
    if foreign:
        raise ValueError(
            f"{data_dir} holds {', '.join(foreign)} that were not generated: nothing is written there. "
            "Name another folder for the generated mammograms."
        )
    return False


def make_test_table(train: pd.DataFrame, test_patients: int, seed: int) -> pd.DataFrame:
    """Women that the training table lacks. Keeps `cancer` and `density`, which drawing needs."""
    ids = set(train["patient_id"]) | set(train["image_id"])
    table = make_table(max(2, test_patients), 0.5, seed + 1_000_003)
    while ids & (set(table["patient_id"]) | set(table["image_id"])):
        table[["patient_id", "image_id"]] += 1
    table = table[table["patient_id"].isin(table["patient_id"].unique()[:test_patients])]
    return table.assign(prediction_id=table["patient_id"].astype(str) + "_" + table["laterality"])


@dataclass(frozen=True)
class Task:
    """All pictures of one woman."""

    rows: pd.DataFrame
    images_dir: Path
    seed: int
    scale: float


def draw_all(tasks: list[Task], workers: int | None) -> Iterator[list[tuple[Any, ...]]]:
    workers = min(workers or processors(), len(tasks))
    bar = tqdm(total=len(tasks), desc="Generating mammograms", unit=" women", mininterval=1.0)
    with bar:
        for rows in in_parallel(draw_woman, tasks, workers):
            bar.update()
            yield rows


def in_parallel(function: Callable[[Task], Any], tasks: list[Task], workers: int) -> Iterable[Any]:
    if workers == 1:
        yield from map(function, tasks)
        return
    # spawn: a fork would inherit the threads of TensorFlow, should it run, in an undefined state
    with ProcessPoolExecutor(workers, get_context("spawn"), cv2.setNumThreads, (1,)) as executor:
        yield from executor.map(function, tasks, chunksize=4)


def draw_woman(task: Task) -> list[tuple[Any, ...]]:
    """Draw and write one woman's pictures, but for those that are there; the rows of lesions.csv."""
    woman = task.rows.iloc[0]
    rng = np.random.default_rng([task.seed, VERSION, int(woman["patient_id"])])
    machine = next(m for m in MACHINES if m.machine_id == woman["machine_id"])
    size = round(machine.rows * task.scale), round(machine.columns * task.scale)
    look = exposed(machine.look, rng)
    drawn_density = str(rng.choice(list(DENSITIES), p=list(DENSITIES.values())))  # site 2 has one, but keeps it
    density = woman["density"] if isinstance(woman["density"], str) else drawn_density
    lesions: list[tuple[Any, ...]] = []
    for side, rows in task.rows.groupby("laterality"):
        breast = make_breast(rng, str(side), density, bool(woman["implant"]), bool(rows["cancer"].iloc[0]))
        for _, row in rows.iterrows():
            path = task.images_dir / str(row["patient_id"]) / f"{row['image_id']}.dcm"
            if not path.exists():
                image_rng = np.random.default_rng([task.seed, VERSION, int(row["image_id"])])
                mammogram = draw_mammogram(breast, row["view"], size, image_rng, look)
                write_dicom(path, mammogram.pixels, machine, header(row, machine, task, image_rng))
            lesions += [
                (row["patient_id"], row["image_id"], lesion.kind, lesion.cancer, *box)
                for lesion, box in lesion_boxes(breast, row["view"], size)
            ]
    return lesions


def exposed(look: Look, rng: np.random.Generator) -> Look:
    """A machine's look as it comes out for one woman."""
    return replace(
        look,
        gain=look.gain * rng.uniform(0.88, 1.08),
        gamma=look.gamma * rng.uniform(0.88, 1.15),
        noise=look.noise * rng.uniform(0.7, 1.5),
    )


def header(row: pd.Series, machine: Machine, task: Task, rng: np.random.Generator) -> dict[str, Any]:
    patient, image = row["patient_id"], row["image_id"]
    other_side = {"L": "R", "R": "L"}[row["laterality"]]
    spacing = f"{machine.spacing / task.scale:.6g}"
    return {
        "PatientID": str(patient),
        "PatientAge": "" if np.isnan(row["age"]) else f"{int(row['age']):03d}Y",
        "StudyInstanceUID": generate_uid(entropy_srcs=[f"study {task.seed} {patient}"]),
        "SeriesInstanceUID": generate_uid(entropy_srcs=[f"series {task.seed} {patient}"]),
        "SOPInstanceUID": generate_uid(entropy_srcs=[f"image {task.seed} {image}"]),
        "InstanceNumber": str(image),
        "ImageLaterality": other_side if rng.random() < 0.01 else row["laterality"],  # unreliable, as in the real files
        "ViewPosition": row["view"],
        "BreastImplantPresent": "YES" if row["implant"] else "NO",
        "ImagerPixelSpacing": [spacing, spacing],
    }


def write_csv(table: pd.DataFrame, path: Path) -> None:
    write_whole(path, table.to_csv(index=False, lineterminator="\n").encode())


def as_json(arguments: dict[str, Any]) -> bytes:
    return (json.dumps(arguments, indent=2) + "\n").encode()
