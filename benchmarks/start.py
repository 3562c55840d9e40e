"""How long worker processes take to start: until the first clip is done, and for two clips as a whole.

    python benchmarks/start.py [--rounds 5] [--beside CHECKOUT]

1. first: `preprocess --media only --limit 4` of synthetic clips with 1 and with 4 workers in turns, from the start of
   the command to the first clip's result, in seconds, and the ratio of the two.
2. two: `preprocess --media only --limit 2 --workers 2` as a whole.
3. files: which regular files the command's processes open for that with 4 workers less those with 1, by three: what a
   worker opens, a file each time that it is opened, and their megabytes. The same clips are decoded with either, so
   ffmpeg and the parts cancel out. Needs strace.

``--beside``: the same of an older checkout, in turns, with this environment. Everything is measured warm, after a run
that counts for nothing. The last line is JSON.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

OPENED = re.compile(r'open(?:at)?\((?:AT_FDCWD, )?"([^"]+)".*\) = \d+')
HERE = Path(__file__).resolve().parents[1]


def command(clips: str, stores: str, workers: int, limit: int) -> list[str]:
    options = ["--root", clips, "--stores", stores, "--media", "only", "--limit", str(limit), "--workers", str(workers)]
    return [sys.executable, "-m", "mlemiss.cli", "preprocess", "--dataset", "ravdess", *options]


class Version:
    """A checkout, under the name that Python imports it by."""

    def __init__(self, checkout: Path, folder: Path, clips: str):
        (folder / "mlemiss").symlink_to(checkout)
        self.folder, self.clips = folder, clips
        self.environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}

    def seconds(self, workers: int, limit: int) -> tuple[float, float]:
        """Return how long the first clip and the whole command took."""
        with tempfile.TemporaryDirectory() as stores:
            start, first = time.perf_counter(), None
            run = subprocess.Popen(
                command(self.clips, stores, workers, limit), env=self.environment, cwd=stores, stderr=subprocess.DEVNULL
            )
            while run.poll() is None:
                if first is None and any(Path(stores).rglob("*.npz")):
                    first = time.perf_counter() - start
                time.sleep(0.01)
            if run.returncode or first is None:
                raise SystemExit(f"{self.folder}: preprocess ended with {run.returncode}, first clip {first}")
            return first, time.perf_counter() - start

    def opened(self, workers: int) -> tuple[int, float]:
        """Return how many files were opened, and their megabytes."""
        with tempfile.TemporaryDirectory() as stores:
            trace = [shutil.which("strace"), "-f", "-qq", "-e", "trace=open,openat", "-o", f"{stores}/trace"]
            subprocess.run(
                [*trace, *command(self.clips, stores, workers, 4)],
                env=self.environment,
                cwd=stores,
                check=True,
                stderr=subprocess.DEVNULL,
            )
            lines = Path(stores, "trace").read_text(errors="replace").splitlines()
        paths = [Path(found[1]) for found in map(OPENED.search, lines) if found]
        sizes = [
            path.stat().st_size for path in paths if path.is_file() and path.parts[1] not in ("dev", "proc", "sys")
        ]
        return len(sizes), sum(sizes) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--beside", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clips = f"{folder}/clips"
        versions = {}
        for name, checkout in (("now", HERE), *([("before", asked.beside.resolve())] if asked.beside else [])):
            Path(folder, name).mkdir()
            versions[name] = Version(checkout, Path(folder, name), clips)
        synth = [sys.executable, "-m", "mlemiss.cli", "synth", clips, "--subjects", "2", "--clips-per-subject", "4"]
        subprocess.run(synth, env=versions["now"].environment, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        taken = {name: [] for name in versions}
        for turn in range(asked.rounds + 1):
            for name, version in versions.items():
                one, four, two = (version.seconds(*of) for of in ((1, 4), (4, 4), (2, 2)))
                if turn:  # the first is the warm-up
                    taken[name].append((one[0], four[0], four[0] / one[0], two[1]))
        found = {name: summary(versions[name], rows) for name, rows in taken.items()}
    print(json.dumps({"benchmark": "start", "cores": os.cpu_count(), "rounds": asked.rounds, **found}))


def summary(version: Version, rows: list[tuple[float, ...]]) -> dict:
    """Print and return medians, the least and the most of the ratio and of two clips, and the files."""
    first_1, first_4, ratios, two = zip(*rows, strict=True)
    found = {"first_1": statistics.median(first_1), "first_4": statistics.median(first_4)}
    found |= {"ratio": statistics.median(ratios), "ratios": [min(ratios), max(ratios)]}
    found |= {"two": statistics.median(two), "twos": [min(two), max(two)]}
    if shutil.which("strace"):
        (few, least), (many, most) = version.opened(1), version.opened(4)
        found |= {"files": few, "megabytes": least, "files_a_worker": (many - few) / 3}
        found |= {"megabytes_a_worker": (most - least) / 3}
    found = {name: np.round(value, 2).tolist() for name, value in found.items()}
    print(f"{version.folder.name}: " + ", ".join(f"{name} {value}" for name, value in found.items()), flush=True)
    return found


if __name__ == "__main__":
    main()
