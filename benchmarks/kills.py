"""Kill preprocessing at random instants, again and again: nothing is lost, and nothing that opens is ever wrong.

    python benchmarks/kills.py [--kills 100] [--clips 12] [--workers 2] [--seed 0]

Every run is `mlemiss preprocess` over synthetic clips into the same folder, killed with SIGKILL after a random part of
an undisturbed run's time. After each kill: every store that is there and complete must equal the undisturbed one byte
for byte, no process may be left, and finished results may only grow in number. A run that ends before its kill must
leave everything complete; then the folder is emptied and the killing goes on. The last line is JSON.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FEATURES = "timm:mobilenetv3_small_050"


def content(stores: Path) -> dict[str, bytes]:
    """Every file of every complete store, RUN.json apart."""
    complete = [path for path in sorted(stores.glob("*.zarr")) if (path / "COMPLETE.json").is_file()]
    files = (file for path in complete for file in sorted(path.rglob("*")) if file.is_file())
    return {str(file.relative_to(stores)): file.read_bytes() for file in files if file.name != "RUN.json"}


def kept(stores: Path) -> int:
    """Finished results: of clips, and of stores."""
    return len(list(stores.glob(".partial/*/clips/*.npz"))) + 1000 * len(list(stores.glob("*.zarr/COMPLETE.json")))


def left(tag: str) -> list[str]:
    """Processes that a killed run left behind, by a variable of their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if tag.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:100])
        except OSError:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    mlemiss = [sys.executable, "-m", "mlemiss.cli"]
    with tempfile.TemporaryDirectory() as folder:
        root, stores, whole = (Path(folder) / name for name in ("clips", "stores", "whole"))
        made = ["--subjects", "1", "--clips-per-subject", str(arguments.clips)]
        subprocess.run([*mlemiss, "synth", str(root), *made], check=True, stderr=subprocess.DEVNULL)
        command = [*mlemiss, "preprocess", "--dataset", "ravdess", "--root", str(root), "--media", "keep"]
        command += ["--features", FEATURES, "--weights", "random", "--workers", str(arguments.workers), "--stores"]
        tag = f"MLEMISS_KILLS={os.getpid()}"
        quiet = {"env": os.environ | dict([tag.split("=")]), "stderr": subprocess.DEVNULL}
        start = time.monotonic()
        subprocess.run([*command, str(whole)], check=True, **quiet)
        longest, expected = time.monotonic() - start, content(whole)
        kills, ended, before = 0, 0, 0
        while kills < arguments.kills:
            process = subprocess.Popen([*command, str(stores)], **quiet)
            try:
                process.wait(draw.uniform(0, longest))
                assert process.returncode == 0, f"a run that was not killed ended with status {process.returncode}"
                assert content(stores) == expected, "the finished stores are not those of an undisturbed run"
                ended, before = ended + 1, 0
                shutil.rmtree(stores)
                continue
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
            deadline = time.monotonic() + 30
            while (remaining := left(tag)) and time.monotonic() < deadline:
                time.sleep(0.1)
            assert not remaining, f"left running: {remaining}"
            assert content(stores).items() <= expected.items(), "a store that opens is not what it should be"
            now = kept(stores) if stores.exists() else 0
            assert now >= before, f"results were lost: {before} before, {now} now"
            before = now
        subprocess.run([*command, str(stores)], check=True, **quiet)
        assert content(stores) == expected, "the finished stores are not those of an undisturbed run"
        assert not list(stores.glob(".partial/*.zarr")), "unfinished work was left"
    print(
        json.dumps({"kills": kills, "runs_that_ended_first": ended, "clips": arguments.clips, "all_as_expected": True})
    )


if __name__ == "__main__":
    main()
