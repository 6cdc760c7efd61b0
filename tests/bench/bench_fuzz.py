"""Prepares thousands of damaged files. Preparing must end, and no image may contradict other decoders.

    python tests/bench/bench_fuzz.py --files 10000 --seed 0

File i is the mutant of seed + i (see tests/fuzz). 1,000 files take about 20 s on two cores. The exit code is 1 if
preparing crashes or hangs, or if an image in the store contradicts another decoder.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # for the package of the tests

from rsna_nb.prepare import ledger, prepare_images, store_path  # noqa: E402
from tests.fuzz.examine import Job, Outcome, examined  # noqa: E402
from tests.fuzz.mutants import REAL_SHARE, mutant  # noqa: E402

BATCH = 500
SIZE = 128
SECONDS_A_FILE = 2  # on average; a batch that takes longer counts as hung
DEATHS = ("the process crashed", "given up")  # the reasons of files whose worker died begin with these


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--real-share", type=float, default=REAL_SHARE, help="of the mutants, if there are real files")
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.prepare:
        prepare_batch(arguments.prepare)
        return 0
    started, records, outcomes = time.perf_counter(), [], []
    last = arguments.seed + arguments.files
    try:
        for first in range(arguments.seed, last, BATCH):
            seeds = range(first, min(first + BATCH, last))
            with tempfile.TemporaryDirectory() as folder:
                records += prepared(Path(folder), seeds, arguments.real_share)
                outcomes += compared(Path(folder), seeds, arguments.real_share)
    except subprocess.SubprocessError as error:
        print(f"the preparation of the seeds {first} to {seeds[-1]} crashed or hung: {error}")
        return 1
    print(f"{arguments.files} files, seeds {arguments.seed} to {last - 1}, {time.perf_counter() - started:.0f} s")
    return report(records, outcomes)


def prepared(folder: Path, seeds: range, real_share: float) -> list[ledger.Record]:
    """Prepare these mutants in a process of its own, which may crash or hang. Returns the ledger's rows."""
    for seed in seeds:
        path = folder / "data" / "train_images" / "1" / f"{seed}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(mutant(seed, real_share).content)
    command = [sys.executable, __file__, "--prepare", str(folder)]
    subprocess.run(command, check=True, timeout=60 + SECONDS_A_FILE * len(seeds), stderr=subprocess.DEVNULL)
    return list(ledger.read(store_of(folder)).values())


def prepare_batch(folder: Path) -> None:
    paths = sorted((folder / "data" / "train_images").glob("*/*.dcm"))
    columns = {"patient_id": [path.parent.name for path in paths], "image_id": [path.stem for path in paths]}
    metadata = pd.DataFrame(columns | {"path": [str(path) for path in paths]})
    prepare_images(metadata, folder / "data", folder / "stores", SIZE)


def store_of(folder: Path) -> Path:
    return store_path(folder / "stores", folder / "data", SIZE)


def compared(folder: Path, seeds: range, real_share: float) -> Iterator[Outcome]:
    pictures = store_of(folder) / "images" / "1"
    job = Job(seeds.start, seeds.stop, str(folder / "log"), real_share, img_size=SIZE, pictures=str(pictures))
    return examined(job)


def report(records: list[ledger.Record], outcomes: list[Outcome]) -> int:
    """Print the outcomes and return the exit code."""
    print_counts("outcomes", ["ok" if record.status == "ok" else first_words(record.error) for record in records])
    deaths = [record for record in records if record.error.startswith(DEATHS)]
    print_list("workers that died or were given up", [f"mutant {each.image_id}: {each.error}" for each in deaths])
    print_counts("errors that explain nothing", [words_of(each.detail) for each in outcomes if each.is_unexplained])
    print_list(
        "differences between decoders of damaged data, which are allowed",
        [str(each) for each in outcomes if each.differing],
    )
    faults = [outcome for outcome in outcomes if outcome.faults and outcome.kind != "death"]
    print_list("contradictions and other faults", [str(outcome) for outcome in faults])
    print_list("deaths of other decoders", [str(each) for each in outcomes if each.kind == "death" and not each.faults])
    slowest, largest = max(outcome.seconds for outcome in outcomes), max(outcome.megabytes for outcome in outcomes)
    print(f"the slowest file took {slowest} s, the largest process {largest} MB")
    agreed = Counter(decoder for outcome in outcomes for decoder in outcome.agreed)
    print("agreements with other decoders:", ", ".join(f"{name} {count}" for name, count in agreed.most_common()))
    return int(bool(faults) or len(records) != len(outcomes))


def first_words(reason: str) -> str:
    return " ".join(reason.split(":")[0].split("(")[0].split()[:6])


def words_of(detail: str) -> str:
    """Cut a reason before its first number or name, which differ from file to file."""
    return re.split(r"[0-9'\"=]", detail)[0][:60]


def print_counts(title: str, reasons: list[str]) -> None:
    print(f"{title}:")
    for reason, count in Counter(reasons).most_common():
        print(f"  {count:6} {reason}")


def print_list(title: str, lines: list[str], shown: int = 30) -> None:
    print(f"{title}: {len(lines)}")
    for line in lines[:shown]:
        print(f"  {line[:400]}")


if __name__ == "__main__":
    sys.exit(main())
