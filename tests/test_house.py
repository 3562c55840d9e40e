"""How much of the product one command enters: what a newcomer reads to follow it."""

import json

from .feature_stores import write_store

MOST_FOR_PREPROCESS = 29  # modules in which a function runs; one of them checks what a store says of itself
MOST_FOR_TRAIN = 33

# Runs a command and prints the modules of which it ran a function; class bodies and imports are no functions.
TRACER = """
import inspect, json, sys, threading
from pathlib import Path
from mlemiss import cli
top = Path(cli.__file__).parent
entered = set()
def enter(frame, event, _):
    if event == "call" and frame.f_code.co_flags & inspect.CO_OPTIMIZED:
        entered.add(frame.f_code.co_filename)
threading.setprofile(enter)
sys.setprofile(enter)
try:
    cli.main(sys.argv[1:])
except SystemExit as end:
    sys.setprofile(None)
    assert not end.code, end.code
ours = [Path(name).relative_to(top) for name in entered if Path(name).is_relative_to(top)]
ours = [path for path in ours if path.parts[0] in ("cli.py", "pipeline", "trainer") and path.suffix == ".py"]
print(json.dumps(sorted(".".join(path.with_suffix("").parts) for path in ours)), file=sys.stderr)
"""


def modules_entered(mlemiss, *arguments: object) -> list[str]:
    """Run a command; return the modules of the product in which a function ran."""
    done = mlemiss(*arguments, code=TRACER)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stderr.splitlines()[-1])


def test_one_clip_to_its_media(synthetic_ravdess, tmp_path, mlemiss):
    where = ["--dataset", "ravdess", "--root", synthetic_ravdess, "--stores", tmp_path / "stores"]
    modules = modules_entered(mlemiss, "preprocess", *where, "--media", "only", "--limit", 1, "--workers", 0)
    print(len(modules), *modules, sep="\n")  # shown when the bound does not hold
    assert "pipeline.run.run" in modules and len(modules) <= MOST_FOR_PREPROCESS


def test_features_to_a_trained_classifier(tmp_path, mlemiss):
    store = write_store(tmp_path / "stores").path
    quick = ["--missing", "audio:0.5", "--seeds", 1, "--epochs", 1, "--out", tmp_path / "run"]
    modules = modules_entered(mlemiss, "train", "--store", store, "--method", "mle", *quick)
    print(len(modules), *modules, sep="\n")
    assert "trainer.fit" in modules and len(modules) <= MOST_FOR_TRAIN
