"""The command line: verbs only. Heavy modules are imported inside the verb that needs them."""

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Literal

import typer

from .pipeline import commands as pipeline_commands
from .pipeline.console import (
    DONE,
    FAILURES,
    INTERRUPTED,
    UNEXPECTED,
    WRONG_INPUT,
    address_space,
    all_cores,
    interruptible,
    open_streams,
    print_json,
    printable,
    say,
    writable_folder,
)
from .pipeline.errors import InputError, MachineError, is_machine_fault, out_of_memory
from .pipeline.options import JsonOption
from .trainer import commands as trainer_commands
from .trainer.settings import Settings

app = typer.Typer(
    name="mlemiss",
    help="Multimodal learning with missing modalities: cache audio-visual features, train, compare, report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (pipeline_commands.synth, pipeline_commands.fetch, pipeline_commands.preprocess):
    app.command()(verb)
verbs = (
    trainer_commands.train,
    trainer_commands.tune,
    trainer_commands.reproduce,
    trainer_commands.predict,
    trainer_commands.report,
)
for verb in verbs:
    app.command()(verb)
app.add_typer(pipeline_commands.store_app)

GOES_ON = "; what is finished is kept, run the same command again to go on"
WHEN_INTERRUPTED = {
    "fetch": GOES_ON,
    "preprocess": GOES_ON,
    "reproduce": GOES_ON,
    "tune": GOES_ON,
    "store push": GOES_ON,
    "store pull": GOES_ON,
    "train": "; finished cells, if any, are kept in the run's folder; another run starts from the beginning, but "
    "with --end-to-end and the same --out it goes on",
}
COMPUTES = ("preprocess", "train", "tune", "predict", "reproduce", "demo")
LEAST_ADDRESS_SPACE = 5 << 30  # bytes, of verbs that compute with torch, which aborts or hangs where it may map less
DEMO_SUBJECTS, DEMO_CLIPS = 24, 12
DEMO_FEATURES = "timm:mobilenetv3_small_050"


def _print_versions(wanted: bool) -> None:
    if not wanted:
        return
    from importlib.metadata import version

    from .pipeline.media.process import ffmpeg_version

    for name in ("mlemiss", "torch", "timm", "zarr", "dask"):
        print(f"{name} {version(name)}")
    print(f"ffmpeg {ffmpeg_version()}")
    raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error (at any place).")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_versions, help="Print versions: mlemiss and its libraries."
        ),
    ] = False,
) -> None:
    """`--debug` is taken from anywhere on the line by `main`; declared here for the help."""


@app.command()
def demo(out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo")) -> int:
    """Run everything on synthetic clips: features of a small random network, three methods, a report."""
    from .pipeline import preprocess as job
    from .pipeline.encoders import Weights
    from .pipeline.run.plan import FeatureRequest
    from .pipeline.stores.store import FeatureStore
    from .trainer.experiments.grid import Grid
    from .trainer.experiments.train import train

    clips, stores, run = (writable_folder(out / part, "--out") for part in ("clips", "stores", "run"))
    pipeline_commands.synth(clips, subjects=DEMO_SUBJECTS, clips_per_subject=DEMO_CLIPS)
    features, where = FeatureRequest({DEMO_FEATURES: Weights("random")}), job.Where(all_cores())
    summary = job.preprocess(job.ClipRequest("ravdess", clips), features, stores, where=where)
    job.print_summary(summary)
    missing = [f"{modality}:{rate}" for modality in ("visual", "audio") for rate in (0.5, 0.8, 0.95)]
    grid = Grid(["lower-bound", "zero-padding", "mle"], missing=missing, seeds=3)
    settings = Settings(epochs=15, hidden=64)  # enough to tell the methods apart within the demo's minutes
    document, run = train([FeatureStore.open(summary.stores[0])], run, grid, settings, replace=True)
    trainer_commands.finish_training(document, run, as_json=False)
    say("These features come from a network with RANDOM weights, of drawn faces and synthetic voices: they show")
    say("that everything works, not how well pretrained features do.")
    say(f"Open {run / 'report.html'}")
    return FAILURES if summary.failed else DONE


@app.command(name="list")
def list_(
    kind: Annotated[Literal["methods", "features", "datasets"], typer.Argument(help="What to list.")],
    as_json: JsonOption = False,
) -> int:
    """List the methods, features or datasets there are, with a line each."""
    if kind == "methods":
        from .trainer import methods

        rows = {name: methods.summary(name) for name in methods.method_names()}
    elif kind == "features":
        from .pipeline.encoders.names import listed_encoders

        rows = listed_encoders()
    else:
        from .pipeline.clips.datasets import dataset_names

        rows = dataset_names()
    if as_json:
        print_json(rows)
    else:
        width = max(14, *map(len, rows))
        for name, row in rows.items():
            facts = row if isinstance(row, dict) else {"summary": row}
            print(f"{name:{width}} {facts['summary']}")
            if more := [f"{key} {value}" for key, value in facts.items() if key != "summary" and value]:
                print(f"{'':{width}} {'; '.join(more)}")
    return DONE


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit: 0 done, 1 done with failures, 2 wrong usage, input or machine, 3 unexpected error.

    130 after Ctrl-C, 128 and its number after another signal.
    """
    open_streams()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    with interruptible() as came:
        status = _run(arguments, debug)
    sys.exit(128 + came[0] if came and status == INTERRUPTED else status)


def _run(arguments: list[str], debug: bool) -> int:
    try:
        try:
            _check_machine(arguments[0] if arguments else "")
            status = app(arguments, standalone_mode=False) or DONE
            if status == INTERRUPTED:  # Typer turns an interrupt into this status, without a word
                raise KeyboardInterrupt
            return status
        except Exception:
            if debug:
                say(traceback.format_exc())
            raise
    except InputError as error:
        status, text = WRONG_INPUT, f"error: {error}"
    except typer.TyperException as error:
        error.message = printable(error.message)
        error.show()
        return WRONG_INPUT
    except (KeyboardInterrupt, typer.Abort):
        line = f"{' '.join(arguments)} "
        goes_on = next((words for verb, words in WHEN_INTERRUPTED.items() if line.startswith(f"{verb} ")), "")
        status, text = INTERRUPTED, f"interrupted{goes_on}"
    except PermissionError as error:
        status, text = WRONG_INPUT, f"error: {error.filename or error}: permission denied.\nName another place."
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except MachineError as error:
        status, text = WRONG_INPUT, f"error: {error}"
    except Exception as error:
        status, text = _other_fault(error)
    say(text)
    return status


def _check_machine(verb: str) -> None:
    """Check what libraries would fail at in unforeseen ways. InputError: no working folder, or too little memory."""
    try:
        Path.cwd()
    except OSError as error:
        raise InputError(
            f"the folder in which this was started cannot be used any more ({error.strerror}).\n"
            "Change into another one (cd), and run it there."
        ) from None
    if verb in COMPUTES and 0 <= (allowed := address_space()) < LEAST_ADDRESS_SPACE:
        raise InputError(
            f"`ulimit -v` allows {allowed / 2**30:.3g} GiB of addresses: expected {LEAST_ADDRESS_SPACE >> 30} or more, "
            "which torch maps without using as much.\nRaise it (ulimit -v unlimited)."
        )


def _other_fault(error: Exception) -> tuple[int, str]:
    """Return the status and the words for what the machine lacks, or for an error that nobody foresaw."""
    if isinstance(error, OSError) and is_machine_fault(error):
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
        return WRONG_INPUT, f"error: {what}.\nMend the disk, network or limit that this names, and run it again."
    if out_of_memory(error):
        return WRONG_INPUT, (
            f"error: memory ran out ({str(error).partition(chr(10))[0] or type(error).__name__}).\n"
            "Use fewer --workers, --device cpu where it was a GPU's, another machine, or a higher limit (ulimit)."
        )
    text = f"unexpected error: {type(error).__name__}: {error}\nRun again with --debug for the traceback."
    return UNEXPECTED, text


if __name__ == "__main__":
    main()
