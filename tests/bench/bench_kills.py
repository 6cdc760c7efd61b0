"""Compares a store whose preparing was killed (kill -9 of the parent) at random moments with one never interrupted.

Prints whether the images and the ledgers, apart from their timings, are the same. The exit code is 1 if they are not.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from rsna_nb import synthetic  # noqa: E402
from rsna_nb.metadata.table import load_metadata  # noqa: E402
from rsna_nb.prepare import ledger, prepare_images, store_path  # noqa: E402

SIZE = 512


def contents(store: Path) -> dict[str, bytes]:
    """Return the content of every file but the lock and the ledger, which holds timings."""
    names = (path for path in store.rglob("*") if path.is_file() and path.name not in ("ledger.csv", ".lock"))
    return {str(path.relative_to(store)): path.read_bytes() for path in names}


def rows(store: Path) -> list[dict[str, object]]:
    return [asdict(record) | {"milliseconds": 0} for record in ledger.read(store).values()]


def kill_after(seconds: float, command: list[str]) -> bool:
    """Start preparing and kill the parent process alone. Returns whether it was still at work."""
    child = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=ROOT)
    time.sleep(seconds)
    child.kill()
    return child.wait() == -signal.SIGKILL


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        data = synthetic.generate(Path(folder, "data"), 300, 0.3, seed=1, scale=0.16)
        table = load_metadata(data)
        started = time.perf_counter()
        prepare_images(table, data, f"{folder}/whole", SIZE)
        seconds = time.perf_counter() - started
        print(f"{len(table)} files, uninterrupted: {seconds:.1f} s; {arguments.kills} kills, seed {arguments.seed}")
        whole, killed = (store_path(f"{folder}/{name}", data, SIZE) for name in ("whole", "killed"))
        command = [sys.executable, __file__, "prepare", str(data), f"{folder}/killed"]
        for kill in range(arguments.kills):
            moment = moments.uniform(1, 2 + 2 * seconds / arguments.kills)
            at_work = kill_after(moment, command)
            done = len(ledger.read(killed))
            print(
                f"{kill + 1:3}: after {moment:.2f} s, {'at work' if at_work else 'finished'}, {done} rows", flush=True
            )
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL, cwd=ROOT)
        same_files, same_rows = contents(killed) == contents(whole), rows(killed) == rows(whole)
        print(
            f"images: {'the same' if same_files else 'DIFFERENT'}; ledger: {'the same' if same_rows else 'DIFFERENT'}"
        )
        return int(not (same_files and same_rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["prepare"]:
        prepare_images(load_metadata(sys.argv[2]), sys.argv[2], sys.argv[3], SIZE)
    else:
        sys.exit(main())
