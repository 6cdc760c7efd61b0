"""Reads mutants with rsna_nb.dicom.read and compares the pictures with those of other decoders.

`examine` reads one mutant in this process. `examined` reads many in a child process of limited memory and time, which
may crash.
"""

import io
import json
import os
import re
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import pydicom

from rsna_nb import dicom
from rsna_nb.dicom.decode import open_pyramid
from rsna_nb.dicom.source import open_frame
from rsna_nb.prepare import to_8_bits
from tests.fuzz.files import fragments
from tests.fuzz.mutants import REAL_SHARE, Mutant, mutant
from tests.fuzz.opinions import contradiction, levels_of, opinions
from tests.fuzz.rasters import raster_opinions
from tests.fuzz.sources import generated_sources

HANGING = 60  # seconds for one mutant, after which the child is killed
MEMORY, SECONDS = 1_000_000_000, 10  # limits for one file, in bytes and seconds
MOST_MEMORY = 2_000_000_000  # of the child's process: a file that needs more is an error that says so


@dataclass
class Outcome:
    """The outcome of one mutant."""

    seed: int
    source: str
    mutations: list[str]
    kind: str  # picture, error or death
    detail: str = ""  # the window of a picture, the reason of an error, the signal of a death
    seconds: float = 0.0
    megabytes: int = 0  # the most memory that this read added to the process
    agreed: list[str] = field(default_factory=list)  # other decoders that read the same
    differing: list[str] = field(default_factory=list)  # differences where decoders need not agree
    faults: list[str] = field(default_factory=list)  # violations of what must hold for every file

    def __str__(self) -> str:
        what = f"{self.seed} ({self.source}: {', '.join(self.mutations)})"
        return f"mutant {what}: {self.kind} {self.detail!r}: {'; '.join(self.faults + self.differing)}"

    @property
    def is_unexplained(self) -> bool:
        """Whether the error is an unexpected Python exception, which tells a user nothing."""
        return self.kind == "error" and "unexpected error" in self.detail


SIZES = (64, 64, (48, 96), 256, 512)


def examine(damaged: Mutant, job: "Job", path: Path, say: Callable[[str], None]) -> Outcome:
    """Write the mutant to `path`, read it and check the picture. `say` is called with the name of each phase."""
    path.write_bytes(damaged.content)
    outcome = Outcome(damaged.seed, damaged.source, list(damaged.mutations), "error")
    size = job.img_size or SIZES[damaged.seed % len(SIZES)]
    shape = (size, size) if isinstance(size, int) else size
    say("reading")
    reading = read(path, shape, outcome)
    if reading is not None:
        outcome.kind, outcome.detail = "picture", reading.window
        outcome.faults += picture_faults(reading.picture, shape)
        say("comparing")
        compare(damaged, reading, outcome) if reading.format == "DICOM" else compare_raster(damaged, path, outcome)
    if job.pictures:
        outcome.faults += stored_picture_faults(Path(job.pictures) / f"{damaged.seed}.png", reading)
    return outcome


def read(path: Path, shape: tuple[int, int], outcome: Outcome) -> dicom.Reading | None:
    """Call `rsna_nb.dicom.read` and measure it. Its error goes into the outcome."""
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to the present memory
    held, started = peak_megabytes(), time.perf_counter()
    try:
        reading = dicom.read(path, shape)
    except dicom.DicomError as error:
        reading, outcome.detail = None, error.reason
    outcome.seconds, outcome.megabytes = round(time.perf_counter() - started, 3), peak_megabytes() - held
    if outcome.seconds > SECONDS:
        outcome.faults.append(f"took {outcome.seconds} s")
    if outcome.megabytes * 1e6 > MEMORY:
        outcome.faults.append(f"took {outcome.megabytes} MB")
    return reading


def peak_megabytes() -> int:
    """Return the peak memory of this process. (getrusage would begin with the peak of its parent.)"""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024 // 1_000_000


def stored_picture_faults(path: Path, reading: dicom.Reading | None) -> list[str]:
    """Check that the store has exactly this picture, and none of a file that cannot be read."""
    if reading is None:
        return ["the store has a picture of a file that cannot be read"] if path.exists() else []
    stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if path.exists() else None
    if stored is None:
        return ["the store has no picture"]
    return [] if np.array_equal(stored, to_8_bits(reading.picture)) else ["the store's picture differs"]


def picture_faults(picture: np.ndarray, shape: tuple[int, int]) -> list[str]:
    """Return what is wrong with a picture, whatever it shows."""
    checks = {
        "not float32": picture.dtype == np.float32,
        f"{picture.shape}, not {shape}": picture.shape == shape,
        "not finite": np.isfinite(picture).all(),
        "not between 0 and 1": picture.min() >= 0 and picture.max() <= 1,
        "all black": picture.max() > 0,
    }
    return [fault for fault, holds in checks.items() if not holds]


def compare(damaged: Mutant, reading: dicom.Reading, outcome: Outcome) -> None:
    """Compare all levels that the picture was made from with the other decoders."""
    dataset = pydicom.dcmread(io.BytesIO(damaged.content))
    pyramid = open_pyramid(dataset)
    is_intact = bool(damaged.codestream) and is_whole(dataset.PixelData, damaged.codestream)
    levels = levels_of(pyramid, reading)
    for opinion in opinions(dataset):
        texts = [text for ours in levels if (text := contradiction(ours, opinion, dataset, is_intact))]
        list_of = outcome.faults if is_intact or opinion.binds else outcome.differing
        list_of += texts
        outcome.agreed += [] if texts else [opinion.decoder]


def compare_raster(damaged: Mutant, path: Path, outcome: Outcome) -> None:
    """Compare the grey values of a file that is not DICOM with the other decoders, of which one must agree."""
    frame = open_frame(path)
    ours = frame.pyramid.level(0)
    is_inverted = frame.dataset.PhotometricInterpretation == "MONOCHROME1"
    for decoder, pixels in raster_opinions(damaged.content, is_inverted):
        is_same = pixels.shape == ours.shape and np.array_equal(pixels, ours)
        (outcome.agreed if is_same else outcome.differing).append(decoder)
    if not outcome.agreed:
        outcome.faults.append(f"no other decoder reads the same; {outcome.differing or 'none'} read something else")


def is_whole(value: bytes, codestream: bytes) -> bool:
    """Return whether PixelData still holds the undamaged codestream."""
    try:
        return codestream == value or codestream == b"".join(fragments(value))
    except (ValueError, struct.error):
        return False


@dataclass(frozen=True)
class Job:
    """The work of a child: the mutants of the seeds from `first` to `last` - 1, logged to the file `log`.

    `pictures` is a folder with SEED.png, written by preparing, to compare with.
    """

    first: int
    last: int
    log: str
    real_share: float = REAL_SHARE
    img_size: int | None = None  # None: SIZES in turn
    pictures: str | None = None


def examined(job: Job) -> Iterator[Outcome]:
    """Yield the outcomes of the job's mutants. If a child dies, that is the mutant's outcome, and another continues."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    while job.first < job.last:
        command = [sys.executable, "-m", "tests.fuzz.examine", json.dumps(asdict(job))]
        log = Path(job.log)
        log.write_text("")
        child = subprocess.run(
            command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, errors="replace"
        )
        lines = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
        yield from (Outcome(**line) for line in lines if "kind" in line)
        if child.returncode == 0:
            return
        if not lines or "kind" in lines[-1]:
            raise RuntimeError(f"the child died between two mutants: {child.stderr}")
        yield death(lines[-1], child)
        job = replace(job, first=lines[-1]["seed"] + 1)


def death(last: dict, child: subprocess.CompletedProcess) -> Outcome:
    """Return the outcome of a mutant that killed the child. It is a fault only if it happened while we were reading."""
    name = "hung" if child.returncode == -signal.SIGALRM else f"died with {child.returncode}"
    detail = f"{last['phase']}: {name} {child.stderr[-300:]}".strip()
    faults = [detail] if last["phase"] == "reading" else []
    return Outcome(last["seed"], last["source"], last["mutations"], "death", detail, faults=faults)


def work(job: Job) -> None:
    """Do the work of the child. It logs a line for each phase, so that the parent knows what a child died of."""
    generated_sources()
    cv2.setNumThreads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as folder, open(job.log, "a", buffering=1) as log:
        for seed in range(job.first, job.last):
            damaged = mutant(seed, job.real_share)
            step = {"seed": seed, "source": damaged.source, "mutations": damaged.mutations}

            def say(phase: str, step: dict = step) -> None:
                signal.alarm(HANGING)
                log.write(json.dumps(step | {"phase": phase}) + "\n")

            outcome = examine(damaged, job, Path(folder) / "x.dcm", say)
            log.write(json.dumps(asdict(outcome)) + "\n")


if __name__ == "__main__":
    work(Job(**json.loads(sys.argv[1])))
