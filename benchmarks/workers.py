"""What worker processes give and take: clips a second of the decode stage with 1 and 2, and each one's peak memory.

    python benchmarks/workers.py [--clips 24] [--rounds 3]

1. rate: `preprocess --media only` as the pipeline runs it on Dask, with 1 and with 2 workers in turns, over clips like
   those of RAVDESS (1280x720 H.264, 3.2 s, different contents), after the workers have started and each has warmed up.
   One worker takes 1.1 cores, as ffmpeg decodes and scales in threads of its own, so two on two cores cannot reach
   twice its rate: `one core` is a worker, its ffmpeg and the scheduler held to a single core.
2. memory: the highest resident memory of any worker, and of any process that decodes, for a growing number of clips,
   among them costly ones: 29 minutes of sound, the same in 8 channels, pictures of 4096x4096, a minute at 60 frames a
   second.

Both within this one run. The last line is JSON.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import psutil
from mlemiss.pipeline.clips.datasets import collect
from mlemiss.pipeline.media.process import ffmpeg_binary
from mlemiss.pipeline.run import cluster
from mlemiss.pipeline.run.plan import FeatureRequest, make_plan
from mlemiss.pipeline.run.run import claimed, lacking, run
from preprocess_decode import make_clips, processor

COSTLY = {
    "long.mkv": "-f lavfi -i testsrc2=s=320x240:r=2:d=1740 -f lavfi -i sine=d=1740:sample_rate=16000 -preset ultrafast",
    "wide.mkv": "-f lavfi -i testsrc2=s=320x240:r=2:d=1740 -f lavfi -i sine=d=1740:sample_rate=16000 -preset ultrafast "
    "-ac 8 -c:a flac",
    "large.mkv": "-f lavfi -i testsrc2=s=4096x4096:r=5:d=2 -f lavfi -i sine=d=2 -preset ultrafast",
    "quick.mkv": "-f lavfi -i testsrc2=s=1280x720:r=60:d=60 -f lavfi -i sine=d=60 -preset ultrafast",
}


def different_copies(originals: list[Path], folder: Path, count: int) -> list[Path]:
    """Copies whose bytes differ (a box that players skip), so that none is taken for another."""
    copies = []
    for i in range(count):
        box = i.to_bytes(8, "big")
        copy = folder / f"copy{i:04}.mp4"
        copy.write_bytes(originals[i % len(originals)].read_bytes() + (16).to_bytes(4, "big") + b"free" + box)
        copies.append(copy)
    return copies


def manifest(folder: Path, paths: list[Path]) -> Path:
    rows = [f"{path.stem},{path.name},{'ab'[i % 2]},s" for i, path in enumerate(paths)]
    (folder / "clips.csv").write_text("\n".join(["clip_id,path,label,subject", *rows]) + "\n")
    return folder / "clips.csv"


def rate(csv: Path, workers: int, cores: int | None = None) -> float:
    """Clips a second from when every worker has finished two clips to the end; on so many cores, or all there are."""
    there = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(there)[:cores]))
    try:
        return _rate(csv, workers)
    finally:
        os.sched_setaffinity(0, there)


def _rate(csv: Path, workers: int) -> float:
    with tempfile.TemporaryDirectory() as stores:
        plan = make_plan(collect(str(csv)), Path(stores), FeatureRequest(media="only"))
        executor = partial(cluster.on_this_machine, workers, None)
        with claimed(plan) as claims:
            times = [time.perf_counter() for _ in run(plan, lacking(plan), executor, claims)]
    warm = 2 * workers
    return (len(times) - warm) / (times[-1] - times[warm - 1])


def peaks(csv: Path, workers: int) -> dict[str, int]:
    """Highest resident bytes of a worker and of an ffmpeg, as seen every 20 ms."""
    highest = {"worker": 0, "ffmpeg": 0}
    with tempfile.TemporaryDirectory() as stores:
        command = [sys.executable, "-m", "mlemiss.cli", "preprocess", "--dataset", str(csv), "--stores", stores]
        command += ["--features", "timm:mobilenetv3_small_050", "--weights", "random", "--workers", str(workers)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)

        def watch() -> None:
            while process.poll() is None:
                with contextlib.suppress(psutil.Error):  # it ended meanwhile
                    for child in psutil.Process(process.pid).children(recursive=True):
                        kind = "ffmpeg" if "ffmpeg" in child.name() else "worker"
                        highest[kind] = max(highest[kind], child.memory_info().rss)
                time.sleep(0.02)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        if process.wait():
            sys.exit(f"preprocess ended with status {process.returncode}")
        watcher.join(1)
    return highest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root, costly = Path(folder) / "root", Path(folder) / "costly"
        for made in (root, costly):
            made.mkdir()
        originals = make_clips(Path(folder))
        csv = manifest(root, different_copies(originals, root, arguments.clips))
        rates = {"1 worker, one core": [], "1 worker": [], "2 workers": []}
        for _ in range(arguments.rounds):
            for found, how in zip(rates.values(), ((1, 1), (1, 2), (2, 2)), strict=True):
                found.append(rate(csv, *how))
        print(f"{processor()}; {arguments.clips} clips, {arguments.rounds} rounds in turns")
        ratios = {}
        for name, found in rates.items():
            each = sorted(two / one for one, two in zip(found, rates["2 workers"], strict=True))
            ratios[name] = [round(x, 3) for x in (statistics.median(each), each[0], each[-1])]
            text = f"; 2 workers against it {ratios[name][0]:.2f} ({each[0]:.2f} to {each[-1]:.2f})"
            print(f"{name}: median {statistics.median(found):.2f} clips/s" + text * (name != "2 workers"), flush=True)
        del ratios["2 workers"]
        dear = []
        for name, options in COSTLY.items():
            dear.append(costly / name)
            subprocess.run([ffmpeg_binary(), "-v", "error", *options.split(), str(dear[-1])], check=True)
        memory = {}
        for count in (8, 2 * 8, 4 * 8):
            memory[count + len(dear)] = peaks(manifest(costly, dear + different_copies(originals, costly, count)), 2)
            text = ", ".join(f"{kind} {size / 2**20:.0f} MiB" for kind, size in memory[count + len(dear)].items())
            print(f"{count + len(dear)} clips, peak memory: {text}", flush=True)
    rounded = {count: {kind: size >> 20 for kind, size in found.items()} for count, found in memory.items()}
    print(json.dumps({"rates": {w: round(statistics.median(r), 3) for w, r in rates.items()},
                      "ratio": ratios, "peak_mib": rounded}))  # fmt: skip


if __name__ == "__main__":
    main()
