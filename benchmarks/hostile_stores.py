"""Meet hostile stores with every verb: none may hang, crash, fill the memory, or stop what has another store.

    python benchmarks/hostile_stores.py [--kinds TEXT] [--verbs ls,info,…] [--at-once 2]

Synthetic clips are preprocessed; of their store hostile copies are made, one of each kind (tests/hostile_stores.py),
sealed as a malicious colleague would do it. Each meets each verb, in a process of its own: alone, and beside the good
store where a verb looks for stores (train, and preprocess of the same network over fewer clips). A row a kind: exit
status and seconds of each verb, and the most memory of any, in MB. The last line is JSON. The status is 1 if a verb
took 10 seconds more than with the good store, ended with 3 or by a signal, took over 500 MB (`train`, `predict` and
`preprocess` load torch: over 500 MB more than with the good store), or failed beside the good store.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

from mlemiss.pipeline.clips.synth import synthesize
from mlemiss.tests.hostile_stores import KINDS, hostile

NETWORK = ("--features", "timm:test_byobnet")
QUICK = ("--missing", "none", "--epochs", 1, "--seeds", 1, "--method", "zero-padding", "--device", "cpu")
SECONDS, MEMORY, LIMIT = 10, 500, 60  # seconds beyond the good store's, MB, seconds until a process is killed
HEAVY = ("train", "train beside", "predict", "preprocess beside")  # which load torch
VERBS = ("ls", "info", "verify", "preview", "pull", *HEAVY)


def mlemiss(*arguments: object) -> tuple[int, float, float]:
    """Run the command; return its status, seconds and most memory in MB."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "mlemiss.cli", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, start_new_session=True
    ) as process:
        while True:
            done, status, used = os.wait4(process.pid, os.WNOHANG)
            if done:
                break
            if time.perf_counter() - begin > LIMIT:
                process.kill()
            time.sleep(0.02)
        process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, time.perf_counter() - begin, used.ru_maxrss / 1e3


def meet(verb: str, store: Path, good: Path, work: Path) -> tuple[int, float, float]:
    """Let a verb meet a store; ``good`` has the clips, a run with weights and the good store."""
    stores = store.parent
    if verb.endswith("beside"):
        stores = work / "stores"
        stores.mkdir()
        shutil.move(store, stores / store.name)
    arguments = {
        "ls": ("store", "ls", stores),
        "info": ("store", "info", store),
        "verify": ("store", "verify", store),
        "preview": ("store", "preview", store, "--out", work / "page.html"),
        "pull": ("store", "pull", store, "--stores", work / "pulled"),
        "train": ("train", "--store", store, *QUICK, "--out", work / "run"),
        "train beside": ("train", *NETWORK, "--dataset", "good", "--stores", stores, *QUICK, "--out", work / "run"),
        "predict": ("predict", good / "run", "--store", store, "--out", work / "predicted"),
        "preprocess beside": (
            *("preprocess", "--dataset", "ravdess", "--root", good / "clips", "--stores", stores, *NETWORK),
            *("--weights", "random", "--workers", 0, "--limit", 2),
        ),
    }[verb]
    if verb == "train beside":
        shutil.copytree(good / "other", stores, dirs_exist_ok=True)
    return mlemiss(*arguments)


def prepare(folder: Path) -> Path:
    """Make clips, their store, another good store of the same features, and a run with weights; return the store."""
    synthesize(folder / "clips", subjects=3, clips_per_subject=12, seed=7)
    run = ("preprocess", "--dataset", "ravdess", "--root", folder / "clips", *NETWORK, "--weights", "random")
    assert mlemiss(*run, "--stores", folder / "stores")[0] == 0
    (store,) = (folder / "stores").glob("*.zarr")
    other = folder / "other" / store.name.replace("ravdess", "good", 1)
    shutil.copytree(store, other)
    from mlemiss.tests.hostile_stores import attribute, seal

    attribute("dataset", "good")(other)
    seal(other)
    assert mlemiss("train", "--store", store, *QUICK, "--save-weights", "--out", folder / "run")[0] == 0
    return store


def row(kind: str | None, store: Path, good: Path, verbs: Sequence[str], work: Path) -> dict[str, tuple]:
    """Let every verb meet one kind; None is the good store itself."""
    results = {}
    for verb in verbs:
        place = work / verb
        place.mkdir(parents=True)
        if kind is None:
            copy = place / "there" / store.name
            shutil.copytree(store, copy)
        else:
            copy = hostile(store, place / "there", kind)
        results[verb] = meet(verb, copy, good, place)
        shutil.rmtree(place)
    return results


def faults(verb: str, result: tuple[int, float, float], usual: tuple[int, float, float]) -> list[str]:
    """Return what a verb must not do and did."""
    (status, seconds, memory), (_, normal, needed) = result, usual
    found = [f"status {status}"] * (status not in (0, 1, 2) or (verb.endswith("beside") and status != 0))
    found += [f"{seconds:.0f} s"] * (seconds > normal + SECONDS)
    most = needed + MEMORY if verb in HEAVY else MEMORY
    return found + [f"{memory:.0f} MB"] * (memory > most)


def main() -> int:
    """Run the table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kinds", default="", help="only kinds with this text in their name")
    parser.add_argument("--verbs", default=",".join(VERBS))
    parser.add_argument("--at-once", type=int, default=2)
    chosen = parser.parse_args()
    verbs, kinds = chosen.verbs.split(","), [kind for kind in KINDS if chosen.kinds in kind]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = prepare(folder / "good")
        usual = row(None, store, folder / "good", verbs, folder / "usual")

        def one(numbered: tuple[int, str]) -> dict[str, tuple]:
            return row(numbered[1], store, folder / "good", verbs, folder / f"{numbered[0]}")

        print(f"{'kind':28}" + "".join(f"{verb:>19}" for verb in verbs) + f"{'most MB':>10}")
        worst, wrong = {"seconds": 0.0, "mb": 0.0}, {}
        with ThreadPoolExecutor(chosen.at_once) as pool:
            for kind, results in zip(["(good)", *kinds], chain([usual], pool.map(one, enumerate(kinds))), strict=True):
                cells = "".join(f"{f'{status} {seconds:.1f} s':>19}" for status, seconds, _ in results.values())
                print(f"{kind:28}{cells}{max(memory for *_, memory in results.values()):10.0f}", flush=True)
                light = [result for verb, result in results.items() if verb not in HEAVY]
                worst["seconds"] = max(worst["seconds"], *(seconds for _, seconds, _ in results.values()))
                worst["mb"] = max(worst["mb"], *(memory for *_, memory in light), 0)
                if found := {v: f for v, result in results.items() if (f := faults(v, result, usual[v]))}:
                    wrong[kind] = found
    print(json.dumps({"kinds": len(kinds), "verbs": verbs, "most": worst, "wrong": wrong}))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
