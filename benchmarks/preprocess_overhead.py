"""The share of a CPU preprocessing run that is neither decoding nor CNN: start-up, messages, writing, idling workers.

Part of `preprocess.py`. Worker-seconds are workers times the wall time of the whole command, from the start of its
process to its end.
"""

import json
import subprocess
import sys
import tempfile
import time


def measure(features: str, clips: int, workers: int) -> dict:
    """Preprocess so many synthetic clips into a throw-away store."""
    with tempfile.TemporaryDirectory() as folder:
        mlemiss = [sys.executable, "-m", "mlemiss.cli"]
        root = f"{folder}/clips"
        size = ["--subjects", "4", "--clips-per-subject", str(-(-clips // 4))]
        subprocess.run([*mlemiss, "synth", root, *size], check=True)
        options = ["--root", root, "--stores", f"{folder}/stores", "--workers", str(workers)]
        options += ["--features", features, "--weights", "random", "--limit", str(clips), "--json"]
        start = time.perf_counter()
        command = [*mlemiss, "preprocess", "--dataset", "ravdess", *options]
        result = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        wall = time.perf_counter() - start
    summary = json.loads(result.stdout)
    seconds, total = summary["seconds"], wall * workers
    share = 1 - (seconds["decode"] + seconds["cnn"]) / total
    print(
        f"{features}, {workers} workers, {summary['clips']} clips: {total:.1f} worker-seconds, decode "
        f"{seconds['decode']:.1f}, cnn {seconds['cnn']:.1f}; neither {share:.1%}"
    )
    return {"features": features, "clips": summary["clips"], "share": round(share, 4)}
