"""Kill preprocessing at random instants, again and again: nothing is lost, and nothing that opens is ever wrong.

    python benchmarks/kills.py [--kills 100] [--clips 12] [--workers 2] [--seed 0] [--features NAME]

Every run is `mlemiss preprocess` over synthetic clips into the same folder, killed with SIGKILL after a random part of
an undisturbed run's time. After each kill: every store that is there and complete must equal the undisturbed one byte
for byte, no process may be left, and finished results may only grow in number. A run that ends before its kill must
leave everything complete; then the folder is emptied and the killing goes on. The last line is JSON.
"""

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

from mlemiss import cli
from mlemiss.pipeline.clips.synth import synthesize


def content(stores: Path) -> dict[str, bytes]:
    """Every file of every complete store, RUN.json apart."""
    complete = [path for path in sorted(stores.glob("*.zarr")) if (path / "COMPLETE.json").is_file()]
    files = (file for path in complete for file in sorted(path.rglob("*")) if file.is_file())
    return {str(file.relative_to(stores)): file.read_bytes() for file in files if file.name != "RUN.json"}


def kept(stores: Path) -> int:
    """Finished results: of clips, and of stores."""
    return len(list(stores.glob(".partial/*/clips/*.npz"))) + 1000 * len(list(stores.glob("*.zarr/COMPLETE.json")))


def start(arguments: list[str], tag: str) -> int:
    """A process that runs `mlemiss ARGUMENTS`, forked from this one, which has imported what is slow to import."""
    process = os.fork()
    if process:
        return process
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.environ.update([tag.split("=")])  # and so of all that it starts
    try:
        cli.main(arguments)
    except SystemExit as end:
        os._exit(end.code or 0)
    os._exit(1)


def ended(process: int, seconds: float) -> int | None:
    """Its exit status, if it ends within so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


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
    parser.add_argument("--features", default="timm:mobilenetv3_small_050")
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    for name in ("timm", "distributed", "librosa", "mlemiss.pipeline.preprocess", "mlemiss.pipeline.stores.share"):
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        root, stores, whole = (Path(folder) / name for name in ("clips", "stores", "whole"))
        synthesize(root, subjects=1, clips_per_subject=arguments.clips, workers=2)
        command = ["preprocess", "--dataset", "ravdess", "--root", str(root), "--media", "keep"]
        command += [
            "--features",
            arguments.features,
            "--weights",
            "random",
            "--workers",
            str(arguments.workers),
            "--stores",
        ]
        tag = f"MLEMISS_KILLS={os.getpid()}"
        begin = time.monotonic()
        assert ended(start([*command, str(whole)], tag), 600) == 0
        longest, expected = time.monotonic() - begin, content(whole)
        kills, ended_first, before = 0, 0, 0
        while kills < arguments.kills:
            process = start([*command, str(stores)], tag)
            status = ended(process, draw.uniform(0, longest))
            if status is not None:
                assert status == 0, f"a run that was not killed ended with status {status}"
                assert content(stores) == expected, "the finished stores are not those of an undisturbed run"
                ended_first, before = ended_first + 1, 0
                shutil.rmtree(stores)
                continue
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            kills += 1
            deadline = time.monotonic() + 30
            while (remaining := left(tag)) and time.monotonic() < deadline:
                time.sleep(0.1)
            assert not remaining, f"left running: {remaining}"
            assert content(stores).items() <= expected.items(), "a store that opens is not what it should be"
            now = kept(stores) if stores.exists() else 0
            assert now >= before, f"results were lost: {before} before, {now} now"
            before = now
        assert ended(start([*command, str(stores)], tag), 600) == 0
        assert content(stores) == expected, "the finished stores are not those of an undisturbed run"
        assert not list(stores.glob(".partial/*.zarr")), "unfinished work was left"
    found = {"kills": kills, "runs_that_ended_first": ended_first, "clips": arguments.clips}
    print(json.dumps(found | {"workers": arguments.workers, "all_as_expected": True}))


if __name__ == "__main__":
    main()
