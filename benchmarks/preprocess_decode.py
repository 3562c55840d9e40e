"""How fast one core turns clips into frames and log-Mels, beside ffmpeg merely decoding the same clips.

Part of `preprocess.py`. Clips that are made are like those of RAVDESS (1280x720 H.264, 3.2 s, about 10 Mb/s, AAC).
Both run on one core, in turns, after a warm-up.
"""

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mlemiss.pipeline.media import decode as media
from mlemiss.pipeline.media.process import ffmpeg_binary, ffmpeg_version

CLIPS = 4


def make_clips(folder: Path) -> list[Path]:
    clips = []
    for seed in range(CLIPS):
        picture = f"{('testsrc2', 'mandelbrot')[seed % 2]}=size=1280x720:rate=30000/1001"
        sound = f"anoisesrc=amplitude=0.1:color=pink:sample_rate=48000:seed={seed}"
        clip = folder / f"clip{seed}.mp4"
        command = [ffmpeg_binary(), "-nostdin", "-v", "error", "-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", sound]
        command += ["-t", "3.2", "-vf", f"noise=alls=12:allf=t:all_seed={seed}", "-pix_fmt", "yuv420p"]
        command += ["-c:v", "libx264", "-b:v", "10M", "-maxrate", "12M", "-bufsize", "10M", "-preset", "fast"]
        command += ["-c:a", "aac", "-ac", "2"]
        subprocess.run([*command, str(clip)], check=True)
        clips.append(clip)
    return clips


def bare(clip: Path) -> None:
    command = [ffmpeg_binary(), "-nostdin", "-v", "error", "-threads", "1", "-i", str(clip), "-f", "null", "-"]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def read(clip: Path) -> None:
    found = media.read_clip(clip)
    if found.causes and set(found.causes) != {"audio"}:
        sys.exit(f"{clip}: {found.causes}")


def seconds(work, clips: list[Path]) -> float:
    start = time.perf_counter()
    for clip in clips:
        work(clip)
    return (time.perf_counter() - start) / len(clips)


def spread(times: list[float]) -> str:
    return f"median {statistics.median(times) * 1e3:.0f} ms a clip, {min(times) * 1e3:.0f} to {max(times) * 1e3:.0f}"


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def measure(root: Path | None, repeats: int) -> dict:
    """Rates and their ratio over the mp4 files of `root` (None: made ones), on the first of this process's cores."""
    allowed = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as made:
        clips = sorted(root.rglob("*.mp4")) if root else make_clips(Path(made))
        if not clips:
            sys.exit(f"{root}: expected mp4 files, found none")
        os.sched_setaffinity(0, {min(allowed)})  # ffmpeg inherits it
        for work in (bare, read):
            seconds(work, clips)
        times = {bare: [], read: []}
        for _ in range(repeats):
            for work, taken in times.items():
                taken.append(seconds(work, clips))
    os.sched_setaffinity(0, allowed)
    ratios = [alone / ours for alone, ours in zip(times[bare], times[read], strict=True)]
    print(
        f"{processor()}, 1 of {len(allowed)} cores; ffmpeg {ffmpeg_version()}; {len(clips)} clips of {root or 'mine'}"
    )
    print(f"n = {repeats} rounds, in turns, after one to warm up")
    print(f"ffmpeg alone  {spread(times[bare])}")
    print(f"read_clip     {spread(times[read])}")
    print(f"ratio         median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}", flush=True)
    rates = {f"{name}_clips_per_s": round(1 / statistics.median(times[work]), 3)
             for name, work in {"decode": read, "bare": bare}.items()}  # fmt: skip
    return rates | {"ratio": round(statistics.median(ratios), 3)}
