"""Times preparing a set of small PNG files against a bare loop over the same files on the same cores.

    python tests/bench/bench_png.py --files 10000 --size 512
    python tests/bench/bench_png.py --files 10000 --size 512 --cropped

The files are generated mammograms, `--distinct` of them, copied: whole frames squeezed to a square, as public PNG sets
have them, or with `--cropped` cropped and fitted into the size. The bare loop decodes each by OpenCV, finds the breast,
crops, fits and masks it, encodes it and writes it, in as many worker processes as `prepare_images` starts. Both take
turns. The time of the cores is given too, since other programs that run at the same time disturb it less.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ["TQDM_DISABLE"] = "1"

import cv2
import numpy as np
import pandas as pd

from rsna_nb.dicom import read_mammogram, reading_steps
from rsna_nb.dicom.crop import find_breast
from rsna_nb.dicom.fitting import fit
from rsna_nb.prepare import prepare_images, to_8_bits
from rsna_nb.synthetic import generate
from rsna_nb.system.files import processors
from rsna_nb.system.worker_process import keep_freed_memory

TARGET = 1.5
CHUNK = 50  # files that a bare process takes at a time


def bare(paths: list[tuple[str, str]], size: int) -> int:
    """Do the least that preparing must do to some files."""
    for source, target in paths:
        grey = cv2.imread(source, cv2.IMREAD_UNCHANGED)
        step = max(1, max(grey.shape) // 200)
        small = cv2.resize(grey, (grey.shape[1] // step, grey.shape[0] // step), interpolation=cv2.INTER_AREA)
        breast = find_breast(small.astype(np.float32) / 255)
        assert breast is not None
        x_min, y_min, x_max, y_max = (step * side for side in breast.box)
        mask = cv2.resize(breast.mask, grey.shape[::-1], interpolation=cv2.INTER_NEAREST)
        picture = fit((grey * mask)[y_min:y_max, x_min:x_max].astype(np.float32) / 255, (size, size))
        Path(target).write_bytes(cv2.imencode(".png", to_8_bits(picture))[1].tobytes())
    return len(paths)


def start() -> None:
    cv2.setNumThreads(1)
    keep_freed_memory()


def spent() -> np.ndarray:
    """Return wall-clock seconds, and seconds of the cores of this process and of all that have ended."""
    times = os.times()
    return np.array([time.perf_counter(), sum(times[:4])])


def bare_seconds(paths: list[Path], folder: Path, size: int) -> np.ndarray:
    """Time the bare loop, with the start of its processes."""
    folder.mkdir()
    pairs = [(str(path), str(folder / path.name)) for path in paths]
    started = spent()
    with ProcessPoolExecutor(processors(), get_context("spawn"), start) as pool:
        chunks = [pairs[i : i + CHUNK] for i in range(0, len(pairs), CHUNK)]
        assert sum(pool.map(bare, chunks, [size] * len(chunks))) == len(paths)
    return spent() - started


def prepared_seconds(paths: list[Path], folder: Path, size: int) -> np.ndarray:
    """Time `prepare_images`, with the start of its processes."""
    table = pd.DataFrame({"patient_id": [path.stem[-3:] for path in paths], "image_id": [path.stem for path in paths]})
    table = table.assign(path=[str(path) for path in paths])
    started = spent()
    ledger = prepare_images(table, folder / "data", folder / "stores", size)
    seconds = spent() - started
    assert (ledger["status"] == "ok").all(), ledger["error"].value_counts()
    return seconds


def drawn(folder: Path, files: int, distinct: int, size: int, cropped: bool) -> list[Path]:
    """Write PNG files of generated mammograms."""
    women = -(-distinct // 4)
    data = generate(folder / "dicom", patients=women, prevalence=0.3, seed=0, scale=0.35)
    sources = sorted(data.glob("train_images/*/*.dcm"))[:distinct]
    made = [folder / "made" / f"{source.stem}.png" for source in sources]
    made[0].parent.mkdir()
    (folder / "png").mkdir()
    for source, path in zip(sources, made, strict=True):
        whole = reading_steps(str(source), size)[2].picture  # the third step: windowed, air dark, not cropped
        picture = read_mammogram(source, size) if cropped else cv2.resize(whole, (size, size))
        cv2.imwrite(str(path), to_8_bits(picture))
    paths = [folder / "png" / f"{i:06d}.png" for i in range(files)]
    for i, path in enumerate(paths):
        shutil.copyfile(made[i % len(made)], path)
    return paths


def print_reading(paths: list[Path], size: int) -> None:
    """Print the median CPU time of reading a file, and of decoding it alone to uint8 and to float32."""
    cv2.setNumThreads(1)
    kinds = {
        "decode": lambda path: cv2.imread(str(path), cv2.IMREAD_UNCHANGED),
        "decode to float32": lambda path: cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(np.float32) / 255,
        "read_mammogram": lambda path: read_mammogram(path, size),
    }
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for path in paths:
        for name, action in kinds.items():
            started = time.process_time()
            action(path)
            seconds[name].append(time.process_time() - started)
    print("CPU time of a file:", ", ".join(f"{name} {1000 * np.median(each):.1f} ms" for name, each in seconds.items()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--distinct", type=int, default=400)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cropped", action="store_true")
    options = parser.parse_args()
    print(f"{processors()} cores, load average {os.getloadavg()[0]:.1f}: above 0.5, others disturb the timing")
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        paths = drawn(place, options.files, options.distinct, options.size, options.cropped)
        print_reading(paths[:200], options.size)
        for n in range(options.rounds):
            theirs.append(bare_seconds(paths, place / f"bare{n}", options.size))
            ours.append(prepared_seconds(paths, place / f"ours{n}", options.size))
            print(
                "round {}: bare loop {:.1f} s ({:.1f} s of the cores), prepare_images {:.1f} s ({:.1f} s)".format(
                    n + 1, *theirs[-1], *ours[-1]
                ),
                flush=True,
            )
    ratio, of_cores = (float(np.median(a / b)) for a, b in zip(np.transpose(ours), np.transpose(theirs), strict=True))
    print(
        f"{options.files} files of {options.size} pixels: {ratio:.2f} times the bare loop (at most {TARGET}), "
        f"{of_cores:.2f} times its time of the cores"
    )
    return int(ratio > TARGET)


if __name__ == "__main__":
    sys.exit(main())
