"""The baselines of other papers on complete clips, beside plain late fusion: test accuracy in percent.

    python benchmarks/baselines.py [--votes FILE.npz] [--views FILE.npz] [--seeds 3] [--only votes]

Plain late fusion is `lower-bound` and `zero-padding` with addition, which on complete clips are one model. Data sets:
CREMA-D's votes and the six views of handwritten digits where their files are named (docs/choices.md says what they
are), the left and right halves of scikit-learn's digits, and made-up classes of three modalities. A method passes where
its mean is not more than 2 points below plain late fusion's; the last line is JSON.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from mlemiss.pipeline.stores.masks import parse_missing
from mlemiss.pipeline.stores.store import FeatureStore
from mlemiss.trainer.experiments.experiments import run_grid
from mlemiss.trainer.experiments.grid import Grid
from mlemiss.trainer.settings import Settings

PLAIN = "zero-padding"
METHODS = [PLAIN, "mle", "transformer", "embracenet", "shaspec", "simmlm", "momke", "flex-moe"]
VIEWS = ("pixels", "fourier", "profiles", "zernike", "karhunen", "morphology")
MARGIN = 2.0  # points


def halves(folder: Path) -> Path:
    """Write the halves of scikit-learn's digits."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pictures = digits.images.astype(np.float32)
    clip = np.array([f"{i:05d}" for i in range(len(pictures))])
    left, right = pictures[:, :, :4].reshape(-1, 32), pictures[:, :, 4:].reshape(-1, 32)
    np.savez(folder / "halves.npz", visual=left, audio=right, z=digits.target, clip=clip)
    return folder / "halves.npz"


def made_up(folder: Path) -> Path:
    """Write five classes of which each of three modalities tells only a part, with noise."""
    rng = np.random.default_rng(0)
    z = np.arange(2000) % 5
    parts = {f"m{m}": rng.normal(0, 0.35, (5, 20))[z] + rng.normal(0, 1, (2000, 20)) for m in range(3)}
    clip = np.array([f"{i:05d}" for i in range(len(z))])
    np.savez(folder / "made.npz", z=z, clip=clip, **{m: x.astype(np.float32) for m, x in parts.items()})
    return folder / "made.npz"


def store_of(folder: Path, path: Path, name: str, label: str, maps: dict[str, str]) -> FeatureStore:
    """Import a file."""
    command = [sys.executable, "-m", "mlemiss.cli", "store", "import", path, "--dataset", name, "--features", "f"]
    command += [part for m, array in maps.items() for part in ("--map", f"{m}={array}")]
    command += ["--label", label, "--clip", "clip", "--stores", folder / name]
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    return FeatureStore.open(next((folder / name).glob("*.zarr")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--votes", type=Path)
    parser.add_argument("--views", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--missing", default="none")
    parser.add_argument("--only", help="names of data sets, joined by commas")
    given = parser.parse_args()
    found: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        stores = {
            "made up": store_of(folder, made_up(folder), "made", "z", {f"m{m}": f"m{m}" for m in range(3)}),
            "digits": store_of(folder, halves(folder), "digits", "z", {"visual": "visual", "audio": "audio"}),
        }
        if given.views:
            stores["six views"] = store_of(folder, given.views, "views", "digit", {v: v for v in VIEWS})
        if given.votes:
            maps = {"visual": "x_face_votes", "audio": "y_voice_votes"}
            stores["votes"] = store_of(folder, given.votes, "votes", "z", maps)
        for name in given.only.split(",") if given.only else list(stores):
            store = stores[name]
            found[name] = {}
            for method in METHODS:
                start = time.perf_counter()
                grid = Grid([method], missing=[parse_missing(given.missing)], seeds=given.seeds)
                (result,) = run_grid([store], grid, Settings(epochs=given.epochs), "cpu")["results"]
                seconds = time.perf_counter() - start
                found[name][method] = {"mean": result["mean"], "std": result["std"], "seconds": round(seconds, 1)}
                print(f"{name}, {method}: {result['mean']:.1f} in {seconds:.0f} s", flush=True)
    print("| method | " + " | ".join(found) + " |\n|---" + "|---" * len(found) + "|")
    for method in METHODS:
        cells = [f"{c[method]['mean']:.1f} ± {c[method]['std'] or 0:.1f}" for c in found.values()]
        print(f"| `{method}` | {' | '.join(cells)} |")
    short = {m: [n for n, c in found.items() if c[m]["mean"] < c[PLAIN]["mean"] - MARGIN] for m in METHODS}
    print(json.dumps({"results": found, "more than 2 points below": {m: n for m, n in short.items() if n}}))


if __name__ == "__main__":
    main()
