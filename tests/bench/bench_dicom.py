"""Times reading a DICOM file from the page cache to an image.

    python tests/bench/bench_dicom.py [--kinds uncompressed] [--sizes 512 1024] [--rounds 9]

It compares rsna_nb, pydicom with pylibjpeg, dicomsdl, and the bare entropy decode. The first table gives medians with
one thread: each recipe has a process of its own, and they take turns of five files. The second table gives images per
second with 1, 2 and all processes. Real files are those of tests/conftest.py; without them only generated ones are
read.
"""

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from threading import Barrier

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ["TQDM_DISABLE"] = "1"

import cv2
import numpy as np
import pydicom
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_voi_lut
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from rsna_nb import dicom
from rsna_nb.dicom import decode
from rsna_nb.dicom.codestream import checked_header
from rsna_nb.dicom.dataset import read_dataset
from rsna_nb.prepare import ledger
from rsna_nb.prepare.tasks import Task, prepare_one
from rsna_nb.synthetic.drawing import Look, draw_mammogram
from rsna_nb.synthetic.files import encode
from rsna_nb.system import workers
from rsna_nb.system.files import processors
from rsna_nb.system.worker_process import keep_freed_memory
from tests.conftest import ENCODERS, REAL_DIR, write_dicom
from tests.films import make_breast

NAMES = {
    JPEG2000Lossless: "JPEG 2000",
    JPEGLosslessSV1: "JPEG lossless",
    ExplicitVRLittleEndian: "uncompressed",
    RLELossless: "RLE",
    JPEGLSLossless: "JPEG-LS",
}
# (kind, size) -> goals: how many times faster than pydicom and than dicomsdl
TARGETS = {
    ("real JPEG 2000 3328x2560", 512): (11, 9),
    ("real JPEG 2000 3328x2560", 1024): (4, 3),
    ("real JPEG lossless 3328x2560", 512): (4.5, 1.2),
    ("real uncompressed 3328x2560", 512): (7, 2.5),
}
BARE_TARGET, SCALING_TARGET = 1.6, 1.8
TURN = 5  # files that a recipe reads before the next recipe takes its turn
MISSING = "-"
HEADINGS = ("file", "size", "level", "rsna_nb", "pydicom", "dicomsdl", "bare", "x pydicom", "x dicomsdl", "x bare")

Files = dict[str, list[Path]]  # kind -> files
Recipe = Callable[[Path, int], np.ndarray]


def pydicom_picture(path: Path, size: int) -> np.ndarray:
    """Read the whole image as public pipelines do, in float64, which apply_voi_lut returns."""
    dataset = pydicom.dcmread(path)
    windowed = apply_voi_lut(pydicom_pixels(dataset), dataset)
    return resized_range(windowed, dataset.PhotometricInterpretation, size)


def pydicom_pixels(dataset: pydicom.Dataset) -> np.ndarray:
    """Decode the stored values by pydicom with pylibjpeg."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_compressed:
        plugin = "pydicom" if syntax == RLELossless else "pylibjpeg"
        dataset.pixel_array_options(decoding_plugin=plugin)
    return dataset.pixel_array


def dicomsdl_picture(path: Path, size: int) -> np.ndarray:
    """Read the whole image by dicomsdl, in float32 and without a window."""
    import dicomsdl

    dataset = dicomsdl.open(str(path))
    return resized_range(dataset.pixelData(), dataset.PhotometricInterpretation, size)


def resized_range(values: np.ndarray, photometric: str, size: int) -> np.ndarray:
    """Stretch the values to 0-1, invert MONOCHROME1 and resize."""
    low = values.min()
    picture = (values - low) / (values.max() - low)
    if photometric == "MONOCHROME1":
        picture = 1 - picture
    return cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)


def recipes() -> dict[str, Recipe]:
    """Return the recipes that are installed, ours first."""
    found: dict[str, Recipe] = {"rsna_nb": dicom.read_mammogram}
    if find_spec("pylibjpeg") and find_spec("libjpeg") and find_spec("openjpeg"):
        found["pydicom"] = pydicom_picture
    if find_spec("dicomsdl"):
        found["dicomsdl"] = dicomsdl_picture
    return found


def bare_decode(path: Path, level: int) -> Callable[[], object]:
    """Return a call that does the entropy decode alone at this level, or reads the bytes of an uncompressed file."""
    dataset = read_dataset(path)
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_compressed:
        return lambda: np.fromfile(path, np.uint8)
    codestream = decode.joined_fragments(dataset)
    if syntax == RLELossless:
        return lambda: decode.rle_frame(codestream, dataset)
    header = checked_header(codestream, dataset)
    if 0 < level <= header.levels:
        return lambda: decode.decode_reduced(codestream, header, level)
    return lambda: decode.DECODERS[syntax](codestream)


@dataclass
class Row:
    """One line of the first table. `ms` is the mean over the files of a kind of their median times."""

    kind: str
    size: int
    levels: list[int]
    ms: dict[str, float]

    def cells(self) -> list[str]:
        names = ("rsna_nb", "pydicom", "dicomsdl", "bare")
        times = [f"{self.ms[name]:.1f}" if name in self.ms else MISSING for name in names]
        target = TARGETS.get((self.kind, self.size), (None, None))
        faster = [self.faster(peer, goal) for peer, goal in zip(names[1:3], target, strict=True)]
        over = f"{self.ms['rsna_nb'] / self.ms['bare']:.2f}"
        goal = f" (at most {BARE_TARGET})" if target[0] and "uncompressed" not in self.kind else ""
        level = "-".join(map(str, sorted({min(self.levels), max(self.levels)})))
        return [self.kind, str(self.size), level, *times, *faster, over + goal]

    def faster(self, peer: str, goal: float | None) -> str:
        if peer not in self.ms:
            return MISSING
        return f"{self.ms[peer] / self.ms['rsna_nb']:.2f}" + (f" (at least {goal:g})" if goal else "")


def measure(kind: str, files: list[Path], size: int, rounds: int, own: dict[str, Executor]) -> Row:
    """Time the recipes, which take turns, each in its own process with TURN files one after the other."""
    means: dict[str, float] = defaultdict(float)
    levels = []
    for path in files:
        levels.append(dicom.read(path, size).level)
        times: dict[str, list[float]] = defaultdict(list)
        with tempfile.TemporaryDirectory() as place:
            turn = copies([path], Path(place, "data"), TURN)
            for _, (name, executor) in itertools.product(range(rounds + 1), own.items()):
                times[name].append(median(executor.submit(milliseconds, name, turn, size, levels[-1]).result()))
        for name, taken in times.items():
            means[name] += median(taken[1:]) / len(files)  # the first round warms up
    return Row(kind, size, levels, means)


def milliseconds(name: str, paths: list[Path], size: int, level: int) -> list[float]:
    """Time a recipe on each file, in ms."""
    times = []
    for path in paths:
        call = bare_decode(path, level) if name == "bare" else partial(recipes()[name], path, size)
        started = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - started))
    return times


def same_pixels(path: Path) -> list[str]:
    """Name the peers whose stored values differ from ours."""
    ours = decode.stored_values(read_dataset(path))[0]
    theirs = {}
    if "pydicom" in recipes():
        theirs["pydicom"] = pydicom_pixels(pydicom.dcmread(path))
    if "dicomsdl" in recipes():
        import dicomsdl

        theirs["dicomsdl"] = dicomsdl.open(str(path)).pixelData(storedvalue=True)
    return [f"{peer}: {path.name}" for peer, pixels in theirs.items() if not np.array_equal(ours, pixels)]


def real_files(folder: Path) -> Files:
    """Group the real mammograms by codec and size, and write the pixels of a large one uncompressed."""
    files: Files = defaultdict(list)
    for path in sorted(REAL_DIR.rglob("*.dcm")):
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
        files[f"real {NAMES[dataset.file_meta.TransferSyntaxUID]} {dataset.Rows}x{dataset.Columns}"].append(path)
    for path in files.get("real JPEG 2000 3328x2560", [])[:1]:
        pixels = decode.stored_values(read_dataset(path))[0]
        copy = recoded(path, folder / "real.dcm", ExplicitVRLittleEndian, pixels.tobytes())
        files["real uncompressed 3328x2560"] = [copy]
    return files


def generated_files(folder: Path, shape: tuple[int, int] = (4096, 3328)) -> Files:
    """Write one generated mammogram of 12 bits with an ordinary window in each codec."""
    rng = np.random.default_rng(0)
    pixels = draw_mammogram(make_breast(rng), "MLO", shape, rng, Look())[0]
    plain = write_dicom(folder / "plain.dcm", pixels, WindowCenter=2048, WindowWidth=4096)
    files = {}
    for syntax, name in NAMES.items():
        content = (
            encapsulate([bytes(ENCODERS[syntax](pixels))]) if name in ("RLE", "JPEG-LS") else encode(pixels, syntax)
        )
        path = recoded(plain, folder / f"{name.replace(' ', '_')}.dcm", syntax, content)
        files[f"generated {name} {shape[0]}x{shape[1]}"] = [path]
    return files


def recoded(source: Path, path: Path, syntax: UID, pixel_data: bytes) -> Path:
    """Write a copy of a file with its pixels in another transfer syntax."""
    dataset = pydicom.dcmread(source)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = pixel_data
    dataset["PixelData"].VR = "OB" if syntax.is_compressed else "OW"
    dataset["PixelData"].is_undefined_length = syntax.is_compressed
    dataset.save_as(path, enforce_file_format=True)
    return path


def start_worker(barrier: Barrier, recipe: Recipe, path: Path, size: int) -> None:
    """Prepare a process for measuring: import everything, read one image on one thread, wait for the others."""
    cv2.setNumThreads(1)
    if recipe is dicom.read_mammogram:
        keep_freed_memory()  # as worker processes do
    recipe(path, size)
    barrier.wait()


def pool(processes: int, recipe: Recipe, path: Path, size: int) -> ProcessPoolExecutor:
    """Start processes, each of which has read an image."""
    context = get_context("spawn")
    barrier = context.Barrier(processes)
    executor = ProcessPoolExecutor(processes, context, start_worker, (barrier, recipe, path, size))
    list(executor.map(abs, range(processes)))
    return executor


def prepared_rate(paths: list[Path], size: int, processes: int) -> float:
    """Return our images per second, with PNG and ledger, in the worker processes. Their start is not counted."""
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        tasks = [Task(Path(folder), (size, size), "1", path.stem, str(path)) for path in paths]
        for _, record in workers.run(prepare_one, tasks, processes):
            assert isinstance(record, ledger.Record)
            assert record.status == "ok"
            ledger.append(Path(folder), record)
            times.append(time.perf_counter())
    first = 2 * processes
    return (len(times) - first) / (times[-1] - times[first - 1])


def read_all(recipe: Recipe, executor: Executor, paths: list[Path], size: int) -> None:
    """Read all files by a peer's recipe. The images are dropped in the process that made them."""
    list(executor.map(dropped, itertools.repeat(recipe), paths, itertools.repeat(size)))


def dropped(recipe: Recipe, path: Path, size: int) -> None:
    """Read an image and drop it."""
    recipe(path, size)


def copies(files: list[Path], folder: Path, count: int) -> list[Path]:
    """Write copies of the files, which leaves them in the page cache."""
    folder.mkdir()
    targets = [folder / f"{i}.dcm" for i in range(count)]
    for target, source in zip(targets, itertools.cycle(files), strict=False):
        target.write_bytes(source.read_bytes())
    return targets


def peers_rate(recipe: Recipe, executor: Executor, paths: list[Path], size: int) -> float:
    """Return a peer's images per second."""
    started = time.perf_counter()
    read_all(recipe, executor, paths, size)
    return len(paths) / (time.perf_counter() - started)


def rates(name: str, paths: list[Path], size: int, counts: Iterable[int], rounds: int) -> dict[int, float]:
    """Return the median of images per second for each number of processes, which take turns."""
    recipe = recipes()[name]
    found: dict[int, list[float]] = defaultdict(list)
    with ExitStack() as stack:
        is_ours = name == "rsna_nb"
        pools = {} if is_ours else {n: stack.enter_context(pool(n, recipe, paths[0], size)) for n in counts}
        for _, count in itertools.product(range(rounds), counts):
            rate = prepared_rate(paths, size, count) if is_ours else peers_rate(recipe, pools[count], paths, size)
            found[count].append(rate)
    return {count: median(rate) for count, rate in found.items()}


def print_single(files: Files, sizes: list[int], rounds: int) -> None:
    print(f"ms with one thread, medians of {rounds}; goals in brackets")
    form = "{:<32} {:>4} {:>5} {:>8} {:>8} {:>8} {:>7}   {:<21} {:<21} {}"
    print(form.format(*HEADINGS))
    path = next(iter(files.values()))[0]
    with ExitStack() as stack:
        named = {**recipes(), "bare": dicom.read_mammogram}
        own: dict[str, Executor] = {n: stack.enter_context(pool(1, recipe, path, 512)) for n, recipe in named.items()}
        for (kind, paths), size in itertools.product(files.items(), sizes):
            print(form.format(*measure(kind, paths, size, rounds, own).cells()), flush=True)
    different = [found for paths in files.values() for path in paths for found in same_pixels(path)]
    count = sum(map(len, files.values()))
    same = "the same to the bit as the peers'" if len(recipes()) > 1 else "no peer to compare with"
    print(f"stored values of {count} files, decoded in full: {f'others than {different}' if different else same}\n")


def print_rates(files: Files, folder: Path, counts: list[int], options: argparse.Namespace) -> None:
    size = options.sizes[0]
    print(f"images per second at {size}, medians of {options.rate_rounds}; ours with PNG and ledger written")
    columns = [f"{count} process{'es' * (count > 1)}" for count in counts]
    print("{:<32} {:<9}".format("file", "recipe"), *(f"{column:>12}" for column in columns), " 2 to 1")
    for (kind, paths), name in itertools.product(files.items(), recipes()):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            count = options.copies if name == "rsna_nb" else max(counts[-1], options.copies // 8)
            found = rates(name, copies(paths, Path(place, "data"), count), size, counts, options.rate_rounds)
        goal = f" (at least {SCALING_TARGET})" if name == "rsna_nb" else ""
        ratio = f"{found[2] / found[1]:.2f}" if {1, 2} <= found.keys() else MISSING
        print(f"{kind:<32} {name:<9}", *(f"{rate:12.1f}" for rate in found.values()), f" {ratio}{goal}", flush=True)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default="", help="only the kinds of file whose name holds this")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--rounds", type=int, default=5, help="of the first table; 0 skips it")
    parser.add_argument("--rate-rounds", type=int, default=3, help="of the second table; 0 skips it")
    parser.add_argument("--copies", type=int, default=96, help="files of the second table, an eighth for the peers")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    cv2.setNumThreads(1)
    if len(recipes()) < 3:
        print("A recipe is not installed and shown as a dash below: pip install -e '.[bench]'")
    print(f"{processors()} cores, load average {os.getloadavg()[0]:.1f}: above 0.5, others disturb the timing\n")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        files = {**real_files(place), **generated_files(place)}
        files = {kind: paths for kind, paths in files.items() if options.kinds in kind}
        if options.rounds:
            print_single(files, options.sizes, options.rounds)
        if options.rate_rounds:
            usual = {kind: paths for kind, paths in files.items() if "3328x2560" in kind} or files
            print_rates(usual, place, sorted({1, 2, processors()}), options)


if __name__ == "__main__":
    main()
