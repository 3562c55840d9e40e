"""Draws of settings as one `mlemiss tune` beside a `mlemiss train` command for each of them.

    python benchmarks/tune.py STORE [--draws 30] [--seeds 5] [--method mle,...] [--missing visual:0.9] [--split subject]

The tuning runs whole. Of the separate commands one runs for each method and number of hidden units, which say how long
it takes, and stands for all draws of these: seconds of a command, start-up included, times draws. Both run in processes
of their own, one after the other. The last line is JSON.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from mlemiss.trainer.experiments.space import COMMON

METHODS = "mle,lower-bound,hgr,zero-padding,ae1,transformer"


def seconds_of(*arguments: object) -> float:
    """Run the command; return how long it took."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "mlemiss.cli", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--draws", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--method", default=METHODS)
    parser.add_argument("--missing", default="visual:0.9")
    parser.add_argument("--split", default="subject")
    given = parser.parse_args()
    methods = given.method.split(",")
    common = ["--store", given.store, "--missing", given.missing, "--split", given.split, "--seeds", given.seeds]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "tuned"
        together = seconds_of("tune", *common, "--method", given.method, "--draws", given.draws, "--out", out)
        rows = json.loads((out / "tuned.json").read_text())["rows"]
        apart, whole = [], 0.0
        for row in rows:
            for hidden, count in Counter(drawn["hidden"] for drawn in row["drawn"]).items():
                drawn = next(one for one in row["drawn"] if one["hidden"] == hidden)
                options = [(f"--{name.replace('_', '-')}", drawn[name]) for name in COMMON if drawn[name] is not None]
                own = ["--method", row["method"], "--out", out.parent / str(len(apart))]
                apart.append(seconds_of("train", *common, *(word for option in options for word in option), *own))
                print(f"{row['method']}, {hidden} hidden units: {apart[-1]:.1f} s for {count} of the draws", flush=True)
                whole += count * apart[-1]
    runs = given.draws * len(methods) * given.seeds
    print(f"{runs} runs of {len(methods)} methods: one command {together:.0f} s, {given.draws * len(methods)} commands")
    print(f"{whole:.0f} s (from {len(apart)} of them, {min(apart):.1f} to {max(apart):.1f} s each)")
    numbers = {"runs": runs, "tune_s": together, "separate_s": whole, "ratio": whole / together, "timed": apart}
    print(json.dumps({"benchmark": "tune", **numbers}))


if __name__ == "__main__":
    main()
