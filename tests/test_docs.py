"""The documents are true: commands run in their order, links, paths, modules, tests and options exist."""

import importlib
import re
import shlex
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import typer
from mlemiss.pipeline.stores.masks import MODALITIES, TRAIN, parse_missing
from mlemiss.pipeline.stores.store import FeatureStore

from .preprocessing import SMALL

ROOT = Path(__file__).parent.parent
PAGES = {path.relative_to(ROOT).as_posix(): path for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}


def blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of a page in one language."""
    return [block for found, block in re.findall(r"```(\w+)\n(.*?)```", TEXTS[page], flags=re.S) if found == language]


def commands(page: str) -> list[str]:
    """Return the commands of a page, each on one line."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip().startswith("mlemiss ")]


# ---- The commands run ----


def small(command: str, folder: Path) -> list[str]:
    """Return the command with a small network of random weights and few epochs in place of what takes minutes."""
    command = re.sub(r"resnet50(,timm:\w+)?|resnet34|vgg16", SMALL, command).replace("/mnt/team", str(folder / "team"))
    arguments = shlex.split(command, comments=True)
    arguments = [found for word in arguments for found in _matching(folder, word)]  # as a shell
    if arguments[1] == "preprocess":
        arguments += ["--weights", "random", "--workers", "0"] + (
            [] if "--features" in command else ["--features", SMALL]
        )
    if arguments[1] in ("train", "tune"):
        arguments += ["--seeds", "1", "--dataset", "ravdess"] + ["--epochs", "1"] * ("--tuned" not in arguments)
    if arguments[1] == "tune":
        arguments += ["--draws", "2"]
    return arguments


def _matching(folder: Path, word: str) -> list[str]:
    return sorted(map(str, folder.glob(word.replace("timm:", "timm.")))) if "*" in word else [word]


@pytest.mark.slow
def test_commands_run(synthetic_ravdess, tmp_path, mlemiss):
    clips = tmp_path / "data" / "ravdess"
    shutil.copytree(synthetic_ravdess, clips)
    rows = [
        f"{path.stem},{path.relative_to(tmp_path)},{path.stem[6:8]},{path.stem[-2:]}" for path in clips.rglob("*.mp4")
    ]
    (tmp_path / "mine.csv").write_text("\n".join(["clip_id,path,label,subject", *rows[:8]]))
    todo = commands("README.md") + commands("docs/training.md")
    # these two are what everybody begins with, as they are
    assert {"mlemiss preprocess --dataset ravdess", "mlemiss train --features resnet50 --missing audio:0.5"} <= {*todo}
    for command in dict.fromkeys(todo):
        if " demo" in command:
            continue  # `make demo` runs it; it takes minutes
        result = mlemiss(*small(command, tmp_path)[1:])
        assert result.returncode == 0, f"{command}\n{result.stderr}"
    (store,) = (tmp_path / "stores").glob("ravdess-timm*.zarr")
    check_torch_dataset(FeatureStore.open(store))


def check_torch_dataset(opened: FeatureStore):
    """The few lines of docs/training.md give the training clips of seed 0 with what audio:0.5 leaves of them."""
    code, _ = blocks("docs/training.md", "python")
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


# ---- What the pages name exists ----


@pytest.mark.parametrize("page", ["README.md", "docs/training.md"])
def test_methods_are_all_listed(page):
    from mlemiss.trainer.layers import OwnFusion
    from mlemiss.trainer.methods import load, method_names

    for name in method_names():
        if page != "README.md" or not issubclass(load(name), OwnFusion):  # the start page has the paper's
            assert re.search(rf"^\| .*`{name}`", TEXTS[page], re.M)


def test_the_readme_is_short():
    assert len(TEXTS["README.md"].splitlines()) <= 160


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if "://" not in target:
            name, _, anchor = target.partition("#")
            linked = PAGES[page].parent / name if name else PAGES[page]
            assert linked.exists(), f"{page} links to {target}"
            assert not anchor or anchor in anchors(linked.read_text(encoding="utf-8")), f"{page} links to {target}"


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TEXTS)
def test_paths_modules_and_tests_exist(page):
    text = TEXTS[page]
    for path in re.findall(r"(?<![\w/])(?:pipeline|trainer|tests|benchmarks|data_manifests|docs)/[\w./-]*\w", text):
        there = ROOT / path
        assert (there.parent if "NAME" in there.name else there).exists(), f"{page} names {path}"
    for module in re.findall(r"^from (mlemiss[\w.]*) import", text, re.M):
        importlib.import_module(module)
    for name in re.findall(r"`(mlemiss\.[\w.]+)`", text):
        if not name.startswith(("mlemiss.methods", "mlemiss.datasets", "mlemiss.features")):  # entry-point groups
            module, _, attribute = name.rpartition(".")
            assert hasattr(importlib.import_module(module), attribute), f"{page} names {name}"
    tests = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tests/test_*.py"))
    for name in set(re.findall(r"`(test_\w+)`", text)) - {"test_accuracy"}:  # which is of results.json
        assert f"def {name}(" in tests or (ROOT / "tests" / f"{name}.py").is_file(), f"{page} names the test {name}"


@pytest.mark.parametrize("page", TEXTS)
def test_options_exist(page):
    from mlemiss.cli import app

    top = typer.main.get_command(app)
    for command in commands(page):
        verb, *rest = shlex.split(command, comments=True)[1:]
        found = top.commands[verb]
        if hasattr(found, "commands"):
            found = found.commands[rest[0]]
        known = {option for parameter in found.params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= known, f"{page}: {command}"


@pytest.mark.parametrize("page", [name for name, text in TEXTS.items() if "python benchmarks/" in text])
def test_options_of_benchmarks_exist(page):
    for script, rest in re.findall(r"^python (benchmarks/\w+\.py)(.*)", TEXTS[page], re.M):
        code = (ROOT / script).read_text(encoding="utf-8")
        for option in re.findall(r"(?<=\s)--[\w-]+", rest):
            assert f'"{option}"' in code, f"{page}: {script} {option}"
