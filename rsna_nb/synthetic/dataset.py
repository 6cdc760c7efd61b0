"""Writes a generated screening data set in the layout of the RSNA competition.

    data_dir/train.csv, test.csv, sample_submission.csv, lesions.csv, generated.json
    data_dir/train_images/<patient_id>/<image_id>.dcm, test_images/...

The table depends on the seed alone, and each image on the seed and its woman's id. So neither the
number of worker processes nor an interruption changes a data set, given the same versions of NumPy, OpenCV and
imagecodecs. table.py makes the women, anatomy.py their breasts, drawing.py the images and files.py
the files.
"""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from pydicom.uid import generate_uid

from rsna_nb.synthetic.anatomy import make_woman
from rsna_nb.synthetic.drawing import Look, draw_mammogram, lesion_boxes
from rsna_nb.synthetic.files import write_dicom
from rsna_nb.synthetic.table import DENSITIES, MACHINES, TEST_COLUMNS, VERSION, Machine, make_table
from rsna_nb.system import locked, processors, progress, remove_parts, workers, write_whole

LESION_COLUMNS = ["patient_id", "image_id", "kind", "cancer", "x_min", "y_min", "x_max", "y_max"]
CPU_SECONDS, WAIT_SECONDS = 600, 3600  # for a woman; one of full size takes 7 s of CPU time
OWN_FILES = ("train.csv", "test.csv", "train_images", "test_images", "sample_submission.csv", "lesions.csv")


def generate(
    data_dir: str | os.PathLike[str],
    patients: int = 450,
    prevalence: float = 0.4,  # among screened women it is 0.005: too rare to learn from so few
    seed: int = 7,
    scale: float = 0.16,  # the smallest machine's images have 444 rows then
    test_patients: int = 4,
    workers: int | None = None,
) -> Path:
    """Write a data set in the RSNA layout. If the same one is already there, return at once.

    If the process is killed, call again with the same arguments to continue where it stopped. generated.json, which is
    written last, marks the data set as complete.

    Parameters
    ----------
    data_dir
        A folder, made if it is missing. train.csv and the other files are written directly into it.
    patients, prevalence, seed
        As in `make_table`. The defaults make the demo set.
    scale
        Size of the images, 0.05 to 1, relative to the machines' 2776 x 2082 to 4740 x 3540 pixels.
    test_patients
        Women in test.csv. Their labels are written nowhere.
    workers
        Worker processes, by default one for each core. 1 works in this process. The files do not depend on it.

    Returns
    -------
    `data_dir` as a path.

    Raises
    ------
    ValueError
        If the folder holds other data or a data set generated with other arguments, or if an argument is out of range.
    WorkerError
        If a worker process dies, for example because the computer has too little memory.

    Examples
    --------
    >>> import tempfile
    >>> folder = generate(tempfile.mkdtemp(), patients=2, prevalence=0.5, scale=0.05, test_patients=0, workers=1)
    >>> sorted(path.name for path in folder.glob("*.csv"))
    ['lesions.csv', 'sample_submission.csv', 'test.csv', 'train.csv']
    """
    data_dir = Path(data_dir)
    arguments: dict[str, Any] = {
        "generator_version": VERSION, "patients": patients, "prevalence": prevalence, "seed": seed,
        "scale": scale, "test_patients": test_patients,
    }  # fmt: skip
    if not 0.05 <= scale <= 1:
        raise ValueError(f"scale={scale}: it must be 0.05 (smaller breasts are a few pixels) to 1 (full size)")
    if test_patients < 0:
        raise ValueError(f"test_patients={test_patients}: it must be 0 or more")
    if not _is_complete(data_dir, arguments):
        with locked(data_dir):
            if not _is_complete(data_dir, arguments):  # another process may have made it while this one waited
                _make_files(data_dir, arguments, workers)
    return data_dir


def _is_complete(data_dir: Path, arguments: dict[str, Any]) -> bool:
    """Return whether the data set is there; `ValueError` if the folder holds anything else."""
    for name in ("generated.json", "generating.json"):
        if (data_dir / name).exists():
            found = json.loads((data_dir / name).read_text())
            wrong = [f"{k}={found.get(k)!r}, not {v!r}" for k, v in arguments.items() if found.get(k) != v]
            if wrong:
                raise ValueError(
                    f"{data_dir} holds a data set generated with {'; '.join(wrong)}. "
                    "Name another folder, or delete this one to generate it again."
                )
            return name == "generated.json"
    foreign = [name for name in OWN_FILES if (data_dir / name).exists()]
    if foreign:
        raise ValueError(
            f"{data_dir} holds {', '.join(foreign)} that were not generated, so nothing is written there. "
            "Name another folder for the generated mammograms."
        )
    return False


def _make_files(data_dir: Path, arguments: dict[str, Any], workers: int | None) -> None:
    """Draw the images that are missing, then write the tables."""
    seed, prevalence = arguments["seed"], arguments["prevalence"]
    train = make_table(arguments["patients"], prevalence, seed)
    test = _make_test_table(train, arguments["test_patients"], seed)
    note = (json.dumps(arguments, indent=2) + "\n").encode()
    write_whole(data_dir / "generating.json", note)
    tasks = [
        Task(rows, data_dir / f"{split}_images", seed, arguments["scale"])
        for split, table in (("train", train), ("test", test))
        for _, rows in table.groupby("patient_id")
    ]
    lesions = pd.DataFrame([row for rows in _draw_all(tasks, workers) for row in rows], columns=LESION_COLUMNS)
    submission = test[["prediction_id"]].drop_duplicates().assign(cancer=prevalence / 2)
    tables = {
        "lesions.csv": lesions[lesions["image_id"].isin(train["image_id"])],  # those of test.csv would be its labels
        "train.csv": train,
        "test.csv": test[TEST_COLUMNS],
        "sample_submission.csv": submission,
    }
    for name, table in tables.items():
        write_whole(data_dir / name, table.to_csv(index=False, lineterminator="\n").encode())
    write_whole(data_dir / "generated.json", note)
    (data_dir / "generating.json").unlink()
    remove_parts(data_dir)


def _make_test_table(train: pd.DataFrame, test_patients: int, seed: int) -> pd.DataFrame:
    """Make women that the training table lacks. The columns include `cancer` and `density`, which drawing needs."""
    ids = set(train["patient_id"]) | set(train["image_id"])
    table = make_table(max(2, test_patients), 0.5, seed + 1_000_003)
    while ids & (set(table["patient_id"]) | set(table["image_id"])):
        table[["patient_id", "image_id"]] += 1
    table = table[table["patient_id"].isin(table["patient_id"].unique()[:test_patients])]
    return table.assign(prediction_id=table["patient_id"].astype(str) + "_" + table["laterality"])


@dataclass(frozen=True)
class Task:
    """One woman to draw: her rows of the table, and the folder of her images."""

    rows: pd.DataFrame
    images_dir: Path
    seed: int
    scale: float


def _draw_all(tasks: list[Task], processes: int | None) -> list[list[tuple[Any, ...]]]:
    """Draw all women. Return each one's rows of lesions.csv, in the order of the tasks."""
    processes, numbered = processes or processors(), list(enumerate(tasks))
    if min(processes, len(tasks)) > 1:
        drawn = workers.run(_draw_in_worker, numbered, processes, seconds=WAIT_SECONDS, cpu_seconds=CPU_SECONDS)
    else:
        drawn = ((task, _draw_woman(task[1])) for task in numbered)
    found: dict[int, list[tuple[Any, ...]]] = {}
    for (position, task), rows in progress(drawn, "generating mammograms", len(tasks), "women"):
        if isinstance(rows, workers.Death):
            woman = task.rows["patient_id"].iloc[0]
            raise workers.WorkerError(f"woman {woman} was not drawn: {rows.reason}. Call again to continue")
        found[position] = rows
    return [found[position] for position in range(len(tasks))]


def _draw_in_worker(task: tuple[int, Task]) -> list[tuple[Any, ...]]:
    """Call `_draw_woman` in a worker process."""
    cv2.setNumThreads(1)  # the worker processes share the cores
    return _draw_woman(task[1])


def _draw_woman(task: Task) -> list[tuple[Any, ...]]:
    """Draw and write the images of one woman that are missing. Returns her rows of lesions.csv."""
    woman = task.rows.iloc[0]
    rng = np.random.default_rng([task.seed, VERSION, int(woman["patient_id"])])
    machine = next(m for m in MACHINES if m.machine_id == woman["machine_id"])
    size = round(machine.rows * task.scale), round(machine.columns * task.scale)
    look = exposed(machine.look, rng)
    # Site 2 has densities too, but does not publish them: the table lacks the value.
    drawn_density = str(rng.choice(list(DENSITIES), p=list(DENSITIES.values())))
    density = woman["density"] if isinstance(woman["density"], str) else drawn_density
    lesions: list[tuple[Any, ...]] = []
    cancer = set(task.rows.loc[task.rows["cancer"] == 1, "laterality"])
    breasts = make_woman(rng, density, bool(woman["implant"]), cancer)
    # View by view, because the images of a view share structures that are computed once.
    for _, rows in task.rows.groupby("view"):
        for _, row in rows.iterrows():
            breast = breasts[row["laterality"]]
            path = task.images_dir / str(row["patient_id"]) / f"{row['image_id']}.dcm"
            if not path.exists():
                image_rng = np.random.default_rng([task.seed, VERSION, int(row["image_id"])])
                pixels, _ = draw_mammogram(breast, row["view"], size, image_rng, look)
                write_dicom(path, pixels, machine, _header(row, machine, task, image_rng))
            lesions += [
                (row["patient_id"], row["image_id"], lesion.kind, lesion.cancer, *box)
                for lesion, box in lesion_boxes(breast, row["view"], size)
            ]
    return lesions


def exposed(look: Look, rng: np.random.Generator) -> Look:
    """Vary a machine's look for one woman: brightness, contrast and noise depend on her exposure."""
    return replace(
        look,
        gain=look.gain * rng.uniform(0.88, 1.08),
        gamma=look.gamma * rng.uniform(0.88, 1.15),
        noise=look.noise * rng.uniform(0.7, 1.5),
    )


def _header(row: pd.Series, machine: Machine, task: Task, rng: np.random.Generator) -> dict[str, Any]:
    """Return the DICOM attributes of one image that depend on the woman and the view, by keyword."""
    patient, image = row["patient_id"], row["image_id"]
    uids = {"StudyInstanceUID": f"study {task.seed} {patient}", "SeriesInstanceUID": f"series {task.seed} {patient}"}
    uids["SOPInstanceUID"] = f"image {task.seed} {image}"
    other_side = {"L": "R", "R": "L"}[row["laterality"]]
    return {keyword: generate_uid(entropy_srcs=[source]) for keyword, source in uids.items()} | {
        "PatientID": str(patient),
        "PatientAge": "" if np.isnan(row["age"]) else f"{int(row['age']):03d}Y",
        "InstanceNumber": str(image),
        "ImageLaterality": other_side if rng.random() < 0.01 else row["laterality"],  # unreliable, as in the real files
        "ViewPosition": row["view"],
        "BreastImplantPresent": "YES" if row["implant"] else "NO",
        "ImagerPixelSpacing": [f"{machine.spacing / task.scale:.6g}"] * 2,
    }
