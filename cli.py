"""The command line: verbs only. Whatever is heavy is imported inside the command that needs it."""

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from .pipeline import store_commands
from .pipeline.console import (
    DONE,
    FAILURES,
    INTERRUPTED,
    UNEXPECTED,
    WRONG_INPUT,
    DeviceOption,
    JsonOption,
    StoresOption,
    comma_list,
    print_json,
    writable_file,
    writable_folder,
)
from .pipeline.errors import InputError, MachineError
from .pipeline.progress import Progress, say
from .trainer import commands
from .trainer.options import (
    BatchSizeOption,
    DimOption,
    EpochsOption,
    FeaturesOption,
    FusionOption,
    HiddenOption,
    LrOption,
    MarginalOption,
    SeedsOption,
    StoreOption,
    WeightDecayOption,
    named_stores,
)
from .trainer.settings import Settings

app = typer.Typer(
    name="mlemiss",
    help="Multimodal learning with missing modalities: cache audio-visual features, train, compare, report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(store_commands.app)

GOES_ON = "; what is finished is kept, run the same command again to go on"
WHEN_INTERRUPTED = {
    "preprocess": GOES_ON,
    "reproduce": GOES_ON,
    "train": "; the cells that were finished are kept in the run's folder, another run begins anew",
}
DEMO_SUBJECTS, DEMO_CLIPS = 24, 12
DEMO_FEATURES = "timm:mobilenetv3_small_050"


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error (at any place).")] = False,
) -> None:
    """`--debug` is taken from anywhere on the line by `main`; declared here for the help."""


def all_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@app.command()
def synth(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write the clips into.")],
    layout: Annotated[str, typer.Option(help="Naming and folders of the data set to imitate: ravdess.")] = "ravdess",
    subjects: Annotated[int, typer.Option(help="Number of subjects, at most 24.")] = 24,
    clips_per_subject: Annotated[int, typer.Option(help="Clips of each subject, at most 48.")] = 48,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    workers: Annotated[int | None, typer.Option(help="Processes (default: all cores).")] = None,
) -> int:
    """Make real video clips of synthetic faces and voices, each of which tells the class only in part."""
    from .pipeline.synth import synthesize

    writable_folder(folder, "DIR")
    with Progress("synth", subjects * clips_per_subject) as bar:
        paths = synthesize(
            folder,
            layout=layout,
            subjects=subjects,
            clips_per_subject=clips_per_subject,
            seed=seed,
            workers=workers or all_cores(),
            progress=lambda done, total: bar.advance(done - bar.done),
        )
    say(f"{len(paths)} clips in {folder}")
    return DONE


@app.command()
def preprocess(
    dataset: Annotated[
        str, typer.Option(help="A known dataset (`list datasets`), or a CSV: clip_id,path,label,subject.")
    ],
    root: Annotated[
        Path | None, typer.Option(help="Folder of the raw clips (default: $MLEMISS_DATA/DATASET or data/DATASET).")
    ] = None,
    features: Annotated[
        list[str] | None, typer.Option(help="Backbones, repeated or a comma list (default: the paper's three).")
    ] = None,
    weights: Annotated[
        list[str] | None, typer.Option(help="imagenet (default), random, FILE, or NAME=FILE for one of several.")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    media: Annotated[str | None, typer.Option(help="keep: cache frames and log-Mels too; only: nothing else.")] = None,
    stores: StoresOption = Path("stores"),
    limit: Annotated[int | None, typer.Option(help="Only N clips, balanced over classes.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Worker processes (default: all cores); 0: serial, in this process.")
    ] = None,
    device: DeviceOption = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Estimate time and disk, compute nothing.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Decode clips, compute CNN features of every segment, cache them in Zarr stores."""
    from .pipeline import preprocess as job
    from .pipeline.backbones import DEFAULT

    workers = all_cores() if workers is None else workers
    job.check_options(media, precision, limit, workers)
    if not stores.is_dir():  # which may be read only where everything is finished
        writable_folder(stores, "--stores")
    if dry_run and as_json:
        raise InputError("--dry-run has no JSON: its estimate goes to standard error.\nLeave out one of the two.")
    summary = job.preprocess(
        dataset,
        root,
        stores,
        comma_list(features or list(DEFAULT)),
        comma_list(weights or ["imagenet"]),
        media_mode=media,
        precision=precision,
        device=device,
        workers=workers,
        limit=limit,
        dry_run=dry_run,
    )
    if summary is None:
        return DONE
    job.print_summary(summary)
    if as_json:
        print_json(summary.as_json())
    return FAILURES if summary.failed else DONE


@app.command()
def train(
    missing: Annotated[
        list[str], typer.Option(help="What training lacks: audio:0.5, audio:0.3+visual:0.3, none; repeated or a list.")
    ],
    features: FeaturesOption = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Methods (`list methods`), repeated or a list (default: mle).")
    ] = None,
    fusion: FusionOption = None,
    missing_test: Annotated[str, typer.Option(help="What validation and test clips lack.")] = "none",
    dataset: Annotated[str | None, typer.Option(help="Which dataset's stores (default: the only one).")] = None,
    seeds: SeedsOption = 5,
    split: Annotated[str, typer.Option(help="clip, or a column whose equal values stay together.")] = "clip",
    splits: Annotated[Path | None, typer.Option(help="Somebody else's splits, a CSV of `store masks`.")] = None,
    masks: Annotated[
        Path | None, typer.Option(help="Somebody else's masks: --missing then names settings of this CSV.")
    ] = None,
    marginal: MarginalOption = Settings.marginal,
    epochs: EpochsOption = Settings.epochs,
    lr: LrOption = Settings.lr,
    batch_size: BatchSizeOption = Settings.batch_size,
    hidden: HiddenOption = Settings.hidden,
    dim: DimOption = Settings.dim,
    weight_decay: WeightDecayOption = Settings.weight_decay,
    device: DeviceOption = "auto",
    stores: StoresOption = Path("stores"),
    store: StoreOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results (default: runs/DATE-NAME).")] = None,
    save_weights: Annotated[bool, typer.Option("--save-weights", help="Keep what was trained, for predict.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Train every combination of the repeatable options, each with N seeds; print and keep the results."""
    from .pipeline.backbones import DEFAULT
    from .pipeline.mask_files import read_given
    from .pipeline.store import FeatureStore, find_store
    from .trainer import job

    sizes = {"batch_size": batch_size, "hidden": hidden, "dim": dim}
    settings = Settings(epochs=epochs, lr=lr, **sizes, weight_decay=weight_decay, marginal=marginal)
    files = read_given(splits, masks)
    specs = [files.setting(text) for text in comma_list(missing)]
    held_out, split = files.held_out(missing_test).name, files.split_name(split)
    names = comma_list(features or list(DEFAULT))
    paths = named_stores(store, features) or [find_store(stores, name, dataset) for name in names]
    document, out = job.train(
        [files.apply(FeatureStore.open(path), seeds, specs) for path in paths],
        out,
        methods=comma_list(method or ["mle"]),
        fusions=comma_list(fusion or ["addition"]),
        missing=specs,
        missing_test=held_out,
        seeds=seeds,
        split=split,
        settings=settings,
        device=device,
        save_weights=save_weights,
    )
    _finish_training(document, out, as_json)
    return DONE


def _finish_training(document: dict, out: Path, as_json: bool) -> None:
    from .trainer.tables import print_results

    if as_json:
        print_json(document)
    else:
        print_results(document)
    say(f"results: {out / 'results.json'}\nreport:  {out / 'report.html'}")


app.command()(commands.predict)
app.command()(commands.reproduce)


@app.command()
def report(
    runs: Annotated[list[Path] | None, typer.Argument(help="Folders of runs (default: the latest in runs/).")] = None,
    out: Annotated[Path | None, typer.Option(help="The HTML file (default: report.html in the first run).")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Also results.csv and comparisons.csv, beside it.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="Also results.tex (booktabs), beside it.")] = False,
) -> int:
    """Write one self-contained HTML report of one or more runs, with paired comparisons over all of them."""
    from .trainer.export import write_csv, write_latex
    from .trainer.report import load_runs, write_report

    if not runs:
        kept = sorted(Path("runs").glob("*/results.json"), key=lambda path: path.stat().st_mtime)
        if not kept:
            raise InputError("no run in runs/.\nName the folder of a run, or make one with `mlemiss train`.")
        runs = [kept[-1].parent]
    out = out or (runs[0] if runs[0].is_dir() else runs[0].parent) / "report.html"
    beside = ["results.csv", "comparisons.csv"] * csv + ["results.tex"] * latex
    for path in (out, *(out.parent / name for name in beside)):
        writable_file(path, "--out")
    documents, comparisons = load_runs(runs)
    write_report(documents, out, comparisons)
    paths = [out]
    if csv:
        paths += write_csv(documents, comparisons, out.parent)
    if latex:
        paths.append(write_latex(documents, out.parent))
    for path in paths:
        say(f"report: {path}")
    return DONE


@app.command()
def demo(out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo")) -> int:
    """Synthetic clips, features of a small random network, three methods at growing missing rates, a report."""
    from .pipeline import preprocess as job
    from .pipeline.store import FeatureStore
    from .trainer import job as train_job

    clips, stores, run = (writable_folder(out / part, "--out") for part in ("clips", "stores", "run"))
    synth(clips, subjects=DEMO_SUBJECTS, clips_per_subject=DEMO_CLIPS)
    summary = job.preprocess("ravdess", clips, stores, [DEMO_FEATURES], ["random"], workers=all_cores())
    job.print_summary(summary)
    document, run = train_job.train(
        [FeatureStore.open(summary.stores[0])],
        run,
        replace=True,
        methods=["lower-bound", "zero-padding", "mle"],
        fusions=["addition"],
        missing=[f"{modality}:{rate}" for modality in ("visual", "audio") for rate in (0.5, 0.8, 0.95)],
        seeds=3,
        settings=Settings(epochs=15, hidden=64),  # enough to tell the methods apart within the demo's minutes
        device="auto",
    )
    _finish_training(document, run, as_json=False)
    say("These features come from a network with RANDOM weights, of drawn faces and synthetic voices: they show")
    say("that everything works, not how well pretrained features do.")
    say(f"Open {run / 'report.html'}")
    return FAILURES if summary.failed else DONE


@app.command(name="list")
def list_(
    what: Annotated[str, typer.Argument(metavar="methods|features|datasets", help="What to list.")],
    as_json: JsonOption = False,
) -> int:
    """List the methods, features or datasets there are, with a line each."""
    if what == "methods":
        from .trainer import methods

        def names() -> dict[str, str]:
            return {name: methods.summary(name) for name in methods.method_names()}
    elif what == "features":
        from .pipeline.backbones import backbone_names as names
    elif what == "datasets":
        from .pipeline.datasets import dataset_names as names
    else:
        raise InputError(f"cannot list {what!r}: expected methods, features or datasets.")
    rows = names()
    if as_json:
        print_json(rows)
    else:
        for name, summary in rows.items():
            print(f"{name:14} {summary}")
    return DONE


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit: 0 done, 1 done with failures, 2 wrong usage or input, 3 unexpected error."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    sys.exit(_run(arguments, debug))


def _run(arguments: list[str], debug: bool) -> int:
    try:
        try:
            status = app(arguments, standalone_mode=False) or DONE
            if status == INTERRUPTED:  # Typer turns an interrupt into this status, without a word
                raise KeyboardInterrupt
            return status
        except Exception:
            if debug:
                traceback.print_exc()
            raise
    except InputError as error:
        status, text = WRONG_INPUT, f"error: {error}"
    except typer.TyperException as error:
        error.show()
        return WRONG_INPUT
    except (KeyboardInterrupt, typer.Abort):
        status, text = INTERRUPTED, "interrupted" + WHEN_INTERRUPTED.get(next(iter(arguments), ""), "")
    except PermissionError as error:
        status, text = WRONG_INPUT, f"error: {error.filename or error}: permission denied.\nName another place."
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except MachineError as error:
        status, text = UNEXPECTED, f"error: {error}"
    except Exception as error:
        kind = type(error).__name__
        status, text = UNEXPECTED, f"unexpected error: {kind}: {error}\nRun again with --debug for the traceback."
    say(text)
    return status


if __name__ == "__main__":
    main()
