"""The README's commands run, in the order in which they stand, and its table of methods is complete."""

import re
import shlex
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from mlemiss.pipeline.stores.masks import MODALITIES, TRAIN, parse_missing
from mlemiss.pipeline.stores.store import FeatureStore

from .conftest import SMALL

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.S)
COMMANDS = [line for language, block in BLOCKS if language == "bash" for line in block.splitlines() if line]


def small(command: str, folder: Path) -> list[str]:
    """The command with a small network of random weights and few epochs in place of what takes minutes or the hub."""
    command = re.sub(r"resnet50(,timm:\w+)?", SMALL, command)
    arguments = shlex.split(command)
    arguments = [found for word in arguments for found in _matching(folder, word)]  # as a shell
    if arguments[1] == "preprocess":
        arguments += ["--weights", "random", "--workers", "0"] + (
            [] if "--features" in command else ["--features", SMALL]
        )
    if arguments[1] == "reproduce":
        arguments += ["--seeds", "1", "--epochs", "1", "--hidden", "8", "--features", SMALL]
    if arguments[1] == "train":
        arguments += ["--seeds", "1", "--epochs", "1"] + ([] if "--dataset" in command else ["--dataset", "ravdess"])
    return arguments


def _matching(folder: Path, word: str) -> list[str]:
    return sorted(map(str, folder.glob(word.replace("timm:", "timm.")))) or [word]


def test_commands_run(synthetic_ravdess, tmp_path, mlemiss):
    clips = tmp_path / "data" / "ravdess"
    shutil.copytree(synthetic_ravdess, clips)
    rows = [
        f"{path.stem},{path.relative_to(tmp_path)},{path.stem[6:8]},{path.stem[-2:]}" for path in clips.rglob("*.mp4")
    ]
    (tmp_path / "mine.csv").write_text("\n".join(["clip_id,path,label,subject", *rows[:8]]))
    (tmp_path / "own.csv").write_text(
        "clip,emotion,AU01_r,AU02_r,voice_pitch\n"
        + "".join(f"c{i},{'sad' if i % 2 else 'happy'},{i % 5},{i % 7},{i % 3}\n" for i in range(40))
    )
    assert [command.split()[:2] for command in COMMANDS[1:3]] == [["mlemiss", "preprocess"], ["mlemiss", "train"]]
    for command in COMMANDS:
        assert command.startswith("mlemiss ")
        if " demo" in command:
            continue  # `make demo` runs it; it takes minutes
        result = mlemiss(*small(command, tmp_path)[1:])
        assert result.returncode == 0, f"{command}\n{result.stderr}"
    (store,) = (tmp_path / "stores").glob("ravdess-timm*.zarr")
    check_torch_dataset(FeatureStore.open(store))


def check_torch_dataset(opened: FeatureStore):
    """The README's few lines give the training clips of seed 0 with what audio:0.5 leaves of them."""
    (code,) = (block for language, block in BLOCKS if language == "python")
    found: dict = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(code.replace("PATH", repr(str(opened.path))), found)
    train = opened.split(0) == TRAIN
    observed = opened.present & ~opened.missing(parse_missing("audio:0.5"), 0, train)
    visual, audio, seen, label = found["dataset"].tensors
    assert len(found["dataset"]) == 36 - 2 * round(0.15 * 36)
    np.testing.assert_array_equal(seen.numpy(), observed[train])
    assert 0 < (~seen[:, 1]).sum() < len(seen)
    np.testing.assert_array_equal(label.numpy(), opened.label[train])
    for m, x in enumerate((visual, audio)):
        expected = np.where(observed[train][:, m, None, None], opened.read(MODALITIES[m])[train], 0)
        np.testing.assert_array_equal(x.numpy(), expected)


def test_methods_are_all_listed():
    from mlemiss.trainer.methods import method_names

    text = README.read_text(encoding="utf-8")
    for name in method_names():
        assert re.search(rf"^\| .*`{name}`", text, re.M)
    assert len(text.splitlines()) < 200


@pytest.mark.parametrize("target", re.findall(r"\]\(([\w./]+)\)", README.read_text(encoding="utf-8")))
def test_links_lead_somewhere(target):
    assert (README.parent / target).exists()
