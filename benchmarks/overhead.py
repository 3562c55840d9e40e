"""The share of a CPU preprocessing run that is neither decoding nor CNN: start-up, messages, writing, idling workers.

    python benchmarks/overhead.py [DIR of RAVDESS clips] [--features resnet50] [--clips 48] [--workers 2]

Worker-seconds are workers times the wall time of the whole command, from the start of its process to its end.
Without DIR, synthetic clips are made.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", nargs="?", type=Path)
    parser.add_argument("--features", default="resnet50")
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mlemiss = [sys.executable, "-m", "mlemiss.cli"]
        root = arguments.root or Path(folder) / "clips"
        if arguments.root is None:
            size = ["--subjects", "4", "--clips-per-subject", str(-(-arguments.clips // 4))]
            subprocess.run([*mlemiss, "synth", str(root), *size], check=True)
        options = ["--root", str(root), "--stores", f"{folder}/stores", "--workers", str(arguments.workers)]
        options += ["--features", arguments.features, "--weights", "random", "--limit", str(arguments.clips), "--json"]
        start = time.perf_counter()
        result = subprocess.run([*mlemiss, "preprocess", "--dataset", "ravdess", *options], stdout=subprocess.PIPE)
        wall = time.perf_counter() - start
    summary = json.loads(result.stdout)
    seconds, total = summary["seconds"], wall * arguments.workers
    share = 1 - (seconds["decode"] + seconds["cnn"]) / total
    print(f"{platform.processor() or platform.machine()}, {arguments.workers} workers, {summary['clips']} clips")
    print(f"{total:.1f} worker-seconds: decode {seconds['decode']:.1f}, cnn {seconds['cnn']:.1f}; neither {share:.1%}")
    print(json.dumps({"features": arguments.features, "clips": summary["clips"], "neither_share": round(share, 4)}))


if __name__ == "__main__":
    main()
