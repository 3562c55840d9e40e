"""The command line as a user meets it: help, wrong usage, statuses, JSON, and what importing must not load."""

import errno
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from mlemiss import cli
from mlemiss.pipeline.errors import InputError, MachineError
from mlemiss.pipeline.stores.store import FeatureStore
from mlemiss.trainer import commands
from mlemiss.trainer.experiments import train
from mlemiss.trainer.experiments.grid import Grid
from mlemiss.trainer.settings import Settings

from .feature_stores import write_store

VERBS = ("synth", "fetch", "preprocess", "train", "predict", "reproduce", "report", "demo", "list", "store")


def imported_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(' '.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_help_lists_the_verbs_and_loads_nothing_heavy(mlemiss):
    result = mlemiss("--help")
    assert result.returncode == 0 and all(verb in result.stdout for verb in VERBS)
    heavy = {"torch", "timm", "dask", "distributed", "zarr", "numpy", "librosa", "cv2", "matplotlib"}
    assert not heavy & imported_by("import mlemiss.cli")


@pytest.mark.slow
def test_what_decodes_a_clip_loads_no_networks(synthetic_ravdess, tmp_path):
    """Without workers a command does a worker's work; where there are many, they start as fast as they import."""
    arguments = ["preprocess", "--dataset", "ravdess", "--root", str(synthetic_ravdess), "--media", "only"]
    arguments += ["--stores", str(tmp_path), "--limit", "1", "--workers", "0"]
    loaded = imported_by(
        f"from mlemiss import cli\ntry: cli.main({arguments})\nexcept SystemExit as end: assert not end.code"
    )
    print(*sorted(name for name in loaded if "." not in name), sep="\n")  # the list
    assert {"numpy", "librosa", "zarr"} <= loaded
    heavy = {"torch", "torchvision", "timm", "sklearn", "pandas", "matplotlib"}
    assert not loaded & {*heavy, "jinja2", "distributed"}  # which takes jinja2 with it
    forked = imported_by("import gc, mlemiss.pipeline.run.forked\nassert gc.isenabled()")  # workers are, from all this
    assert "distributed" in forked and not forked & heavy
    late = {name.partition(".")[0] for name in loaded - forked}
    assert not late & {"librosa", "numba", "scipy", "soxr", "soundfile"}, "each worker imports it anew"


def test_version_names_what_computes_and_loads_nothing_heavy(mlemiss):
    lines = mlemiss("--version").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["mlemiss", "torch", "timm", "zarr", "dask", "ffmpeg"]
    assert all(re.fullmatch(r"n?\d+\.\d+.*", line.split()[1]) for line in lines)
    quiet = "import contextlib, io\nfrom mlemiss import cli\n"
    quiet += "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): cli.main(['--version'])"
    assert not {"torch", "timm", "zarr", "dask", "numpy"} & imported_by(quiet)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, mlemiss):
    result = mlemiss(verb, "--help")
    assert result.returncode == 0 and "Usage" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["nope"], "No such command"),
        (["train"], "--missing"),
        (["list", "songs"], "'songs' is not one of 'methods', 'features', 'datasets'"),
        (["store", "verify", "nowhere"], "no store at nowhere"),
        (["report"], "no run in runs/"),
        (["report", "nowhere"], "no results at nowhere"),
        (["synth", "x", "--subjects", "99"], "24"),
        (["synth", "x", "--layout", "nope"], "nope"),
        (["train", "--missing", "audio:1.5"], "not between 0 and 1"),
        (["train", "--missing", ","], "an empty list"),
        (["train", "--missing", "none", "--epochs", "0"], "epochs 0"),
        (["reproduce", "table2", "--hide", "1"], "hide 1.0 is out of range: expected 0 or more and less than 1"),
        (["train", "--missing", "none", "--marginal", "most"], "is not one of 'full', 'bank', 'batch'"),
        (["train", "--missing", "none", "--stores", "nowhere"], "no finished store"),
        (["train", "--missing", "none", "--store", "nowhere"], "no store at nowhere"),
    ],
)
def test_wrong_usage_is_status_2_with_a_message(arguments, why, mlemiss):
    result = mlemiss(*arguments)
    assert result.returncode == 2 and result.stdout == ""
    assert why in result.stderr and "Traceback" not in result.stderr


@pytest.fixture
def toy(tmp_path):
    return write_store(tmp_path / "stores").path


def test_train_prints_a_table_and_keeps_results(toy, tmp_path, mlemiss):
    quick = ["--seeds", 2, "--epochs", 2, "--store", toy]
    result = mlemiss(
        "train", "--missing", "audio:0.5,visual:0.5", "--method", "mle,lb", *quick, "--out", tmp_path / "r"
    )
    assert result.returncode == 0, result.stderr
    assert "lower-bound" in result.stdout and "audio:0.5" in result.stdout and "±" in result.stdout
    kept = json.loads((tmp_path / "r" / "results.json").read_text())
    assert len(kept["results"]) == 4 and (tmp_path / "r" / "report.html").stat().st_size > 10_000
    assert len(list((tmp_path / "r" / "predictions").glob("*.npz"))) == 4
    again = mlemiss("train", "--missing", "none", *quick, "--out", tmp_path / "r")
    assert again.returncode == 2 and "another run" in again.stderr
    assert json.loads((tmp_path / "r" / "results.json").read_text()) == kept


def test_hyper_parameters_are_in_the_results(toy, tmp_path, mlemiss):
    """Each as it was given, the others as by default, in both verbs; and the report says them."""
    given = {"dropout": 0.2, "hide": 0.3, "complete_share": 0.4, "clamp": 5.0, "dim": 4, "weight_decay": 0.5}
    options = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)]
    result = mlemiss(
        "train", "--missing", "audio:0.5", "--seeds", 1, "--epochs", 1, "--store", toy, *options, "--out", "run"
    )
    assert result.returncode == 0, result.stderr
    assert "dropout 0.2, hide 0.3, complete share 0.4, clamp 5.0" in result.stderr
    found = json.loads((tmp_path / "run" / "results.json").read_text())["results"]
    assert found and all(r["settings"] == asdict(Settings(epochs=1, **given)) for r in found)
    assert "complete share 0.4, clamp 5.0" in (tmp_path / "run" / "report.html").read_text()
    for function in (commands.train, commands.reproduce):
        defaults = {name: one.default for name, one in inspect.signature(function).parameters.items()}
        assert {name: defaults[name] for name in given} == {name: getattr(Settings, name) for name in given}


def test_train_json_is_one_document_and_nothing_else(toy, mlemiss):
    result = mlemiss("train", "--missing", "none", "--seeds", 1, "--epochs", 1, "--store", toy, "--json")
    document = json.loads(result.stdout)
    assert document["schema"] == 1 and document["results"][0]["std"] is None
    assert "runs/" in result.stderr  # the default folder of results


def test_impossible_combination_alone_is_an_error_in_a_grid_a_line(toy, mlemiss):
    quick = ["--missing", "audio:0.5", "--seeds", 1, "--epochs", 1, "--store", toy, "--method"]
    alone = mlemiss("train", *quick, "zp", "--fusion", "outer")
    assert alone.returncode == 2 and "outer" in alone.stderr
    grid = mlemiss("train", *quick, "zp,mle", "--fusion", "outer", "--json")
    assert grid.returncode == 0 and "skipped" in grid.stderr
    assert [result["method"] for result in json.loads(grid.stdout)["results"]] == ["mle"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--method", "magic"], "unknown method 'magic'"),
        (["--fusion", "glue"], "unknown fusion 'glue'"),
        (["--split", "moon"], "no such column"),
        (["--seeds", "0"], "expected at least one"),
        (["--device", "tpu"], "'tpu' is not one of 'auto', 'cpu', 'cuda', 'mps'"),
        (["--missing", "audio:1"], "audio"),
        (["--method", "lb", "--missing", "audio:1"], "complete"),
    ],
)
def test_bad_training_requests(options, why, toy, mlemiss):
    missing = [] if "--missing" in options else ["--missing", "audio:0.5"]
    result = mlemiss("train", "--store", toy, "--epochs", 1, *missing, *options)
    assert result.returncode == 2 and why in result.stderr and "Traceback" not in result.stderr


def test_stores_are_listed_and_verified(toy, mlemiss):
    listed = mlemiss("store", "ls", "--stores", toy.parent, "--json")
    assert json.loads(listed.stdout)[0]["store"] == toy.name
    assert mlemiss("store", "verify", toy).returncode == 0
    (toy / "label" / "c" / "0").write_bytes(b"?")
    damaged = mlemiss("store", "verify", toy)
    assert damaged.returncode == 1 and "label/c/0" in damaged.stdout


def test_damaged_features_are_told(toy, mlemiss):
    (toy / "visual" / "c" / "0" / "0" / "0").write_bytes(b"no chunk")
    result = mlemiss("train", "--store", toy, "--missing", "none", "--epochs", 1)
    assert result.returncode == 2 and "store verify" in result.stderr


def test_unexpected_errors_are_status_3_and_debug_shows_the_traceback(toy, tmp_path, mlemiss):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "predictions").touch()
    arguments = ["train", "--store", toy, "--missing", "none", "--epochs", 1, "--out", tmp_path / "r"]
    plain, debug = mlemiss(*arguments), mlemiss(*arguments, "--debug")
    assert plain.returncode == debug.returncode == 3
    assert "Traceback" not in plain.stderr and "--debug" in plain.stderr and "Traceback" in debug.stderr


@pytest.fixture
def wrong_places(tmp_path):
    """A file where a folder should be, a folder where a file should be, a link to nowhere."""
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "results.csv").mkdir(parents=True)
    (tmp_path / "link").symlink_to("nowhere")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--missing", "none", "--epochs", 1, "--store", "TOY", "--out", "file"],
        ["train", "--missing", "none", "--epochs", 1, "--store", "TOY", "--out", "file/below"],
        ["train", "--missing", "none", "--epochs", 1, "--store", "TOY", "--out", "link"],
        ["train", "--missing", "none", "--epochs", 1, "--store", "TOY", "--out", "a" * 300],
        ["reproduce", "table2", "--store", "TOY", "--out", "file"],
        ["report", "RUN", "--out", "folder"],
        ["report", "RUN", "--out", "file/report.html"],
        ["report", "RUN", "--out", "folder/report.html", "--csv"],
        ["predict", "RUN", "--store", "TOY", "--out", "folder"],
        ["predict", "RUN", "--store", "TOY", "--out", "file/p.csv"],
        ["predict", "RUN", "--store", "TOY", "--out", "a" * 300],
        ["store", "masks", "TOY", "--out", "file"],
        ["preprocess", "--dataset", "ravdess", "--stores", "file"],
        ["preprocess", "--dataset", "ravdess", "--stores", "file/below"],
        ["synth", "file"],
        ["synth", "file/below"],
        ["demo", "--out", "file"],
    ],
    ids=lambda arguments: " ".join(map(str, arguments))[:60],
)
def test_places_that_cannot_be_written_are_told_before_any_work(arguments, toy, wrong_places, mlemiss):
    before = sorted(wrong_places.rglob("*"))
    places = {"TOY": toy, "RUN": wrong_places / "folder"}
    result = mlemiss(*(places.get(argument, argument) for argument in arguments))
    assert result.returncode == 2 and result.stderr.startswith("error: ") and result.stderr.count("\n") <= 2
    assert "xpected a f" in result.stderr or "ame another" in result.stderr
    assert sorted(wrong_places.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_that_may_only_be_read(toy, tmp_path, mlemiss):
    (tmp_path / "read").mkdir(mode=0o500)
    result = mlemiss("store", "masks", toy, "--out", "read/files")
    assert result.returncode == 2 and "nothing can be written into read" in result.stderr


def test_runs_of_one_second_have_folders_of_their_own_and_failed_ones_leave_none(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train.time, "strftime", lambda *_: "now")
    store, options = FeatureStore.open(toy), {"settings": Settings(epochs=1), "device": "cpu"}
    grid = Grid(missing=["none"], seeds=1)
    folders = [train.train([store], None, grid, **options)[1] for _ in range(3)]
    assert [str(folder) for folder in folders] == ["runs/now-toy-mle", "runs/now-toy-mle-2", "runs/now-toy-mle-3"]
    assert all((folder / "results.json").is_file() for folder in folders)
    with pytest.raises(InputError, match="no such column"):
        train.train([store], None, Grid(splits=["weather"]), **options)
    assert sorted(Path("runs").iterdir()) == folders


@pytest.mark.parametrize(
    ("arguments", "inside", "said"),
    [
        (["train", "--missing", "none"], "trainer.commands.find_stores", "another run starts from the beginning"),
        (["reproduce", "table2"], "trainer.commands.named_stores", "to go on"),
        (["report", "run"], "trainer.commands.writable_file", "interrupted\n"),
    ],
)
def test_what_is_said_on_an_interrupt_is_true_of_the_verb(arguments, inside, said, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"mlemiss.{inside}", interrupt)
    with pytest.raises(SystemExit, match="130"):
        cli.main(arguments)
    assert said in capsys.readouterr().err


def test_a_store_named_twice_is_trained_once(toy, tmp_path, mlemiss):
    (tmp_path / "same").symlink_to(toy)
    stores = ["--store", toy, "--store", "same", "--store", toy.relative_to(tmp_path)]
    result = mlemiss("train", "--missing", "none", "--method", "mle", "--seeds", 1, "--epochs", 1, *stores, "--json")
    assert len(json.loads(result.stdout)["results"]) == 1
    assert commands.named_stores([Path("b"), Path("a"), Path("c/../b")], None) == [Path("b"), Path("a")]


@pytest.mark.parametrize("what", ["methods", "features", "datasets"])
def test_list(what, mlemiss):
    result = mlemiss("list", what, "--json")
    assert result.returncode == 0 and all(json.loads(result.stdout).values())


def test_a_folder_that_is_gone_and_too_little_memory_are_one_clear_line(tmp_path, mlemiss):
    gone = "import os\nos.mkdir('gone')\nos.chdir('gone')\nos.rmdir('../gone')"
    told = mlemiss("train", "--missing", "none", before=gone)
    assert told.returncode == 2 and "folder in which this was started cannot be used any more" in told.stderr
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))"
    told = mlemiss("predict", "run", "--store", "s", before=limit)
    assert told.returncode == 2 and "`ulimit -v` allows 3 GiB of addresses: expected 5 or more" in told.stderr


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (OSError(errno.EIO, "Input/output error", "/disk/x"), 2, "error: /disk/x: Input/output error.\nMend the disk"),
        (OSError(errno.ENODEV, "No such device"), 2, "error: No such device."),
        (MemoryError(), 2, "error: memory ran out (MemoryError)"),
        (RuntimeError("can't start new thread"), 2, "error: memory ran out (can't start"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), 2, "error: memory ran out"),
        (MachineError("no clips at /x (any more)"), 2, "error: no clips at /x"),
        (ImportError("no module named numpy"), 3, "unexpected error: ImportError"),
        (InputError("a\x1b[31mb\u202ec"), 2, "error: a?[31mb?c\n"),
    ],
)
def test_faults_of_the_machine_are_status_2(error, status, told, monkeypatch, capsys):
    def app(*_, **__):
        raise error

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit) as ended:
        cli.main(["store", "ls"])
    assert ended.value.code == status and told in capsys.readouterr().err


CLOSED = "import os\nos.close({number})\nimport sys\nsys.std{name} = None"


def test_closed_streams_get_no_file_and_a_reader_that_left_ends_no_work(toy, mlemiss):
    """What is said must not land on standard output, nor in a store's file that got the number 2."""
    code = "import sys, mlemiss.cli\ntry:\n    mlemiss.cli.main(sys.argv[1:])\nfinally:\n"
    code += "    print(os.stat(2).st_rdev == os.stat(os.devnull).st_rdev)"
    closed = mlemiss("store", "verify", "nowhere", before=CLOSED.format(number=2, name="err"), code=code)
    assert (closed.returncode, closed.stdout) == (2, "True\n")
    silent = mlemiss("store", "verify", toy, before=CLOSED.format(number=1, name="out"))
    assert silent.returncode == 0, silent.stderr
    left = "import os\nread, write = os.pipe()\nos.close(read)\nos.dup2(write, 2)"
    result = mlemiss("store", "ls", "--stores", toy.parent / "none", before=left + "\nprint('on')")
    assert (result.returncode, result.stdout) == (0, "on\n")


WAITS = """
import signal, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as if not under nohup
from mlemiss.pipeline.stores import catalogue
from mlemiss.pipeline.stores.claim import only_one
from pathlib import Path
def wait(folder):
    with only_one(Path("x.lock"), "X"):
        try:
            print("at work", flush=True)
            time.sleep(60)
        finally:
            time.sleep(0.3)
            print("cleaned up", flush=True)
catalogue.catalogue = wait
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_as_an_interrupt_does(number, tmp_path, mlemiss):
    running = mlemiss.start("store", "ls", "--stores", tmp_path, before=WAITS)
    running.until("at work")
    assert list(tmp_path.glob("x.lock.json"))
    for _ in range(3):  # a second one does not break off the cleaning up
        os.kill(running.pid, number)
        time.sleep(0.05)
    assert running.wait() == 128 + number, running.stderr
    assert "cleaned up" in running.stdout and running.stderr.endswith("interrupted\n")
    assert not list(tmp_path.glob("x.lock.json"))
