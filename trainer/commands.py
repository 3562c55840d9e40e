"""The verbs `train`, `reproduce`, `predict` and `report`. Whatever is heavy is imported inside the command."""

import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import fields
from functools import wraps
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..pipeline.console import (
    DONE,
    amount,
    comma_list,
    print_json,
    say,
    writable_file,
    writable_folder,
)
from ..pipeline.errors import InputError
from ..pipeline.options import DeviceOption, JsonOption, StoresOption, parse_stores
from ..pipeline.stores.remote import Place, parse_place
from .settings import Marginal, Settings

if TYPE_CHECKING:
    from .end_to_end.end_to_end import EndToEnd
    from .experiments.tune import Tuned

EndToEndOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Train this backbone too, on the frames and log-Mels of a media store."),
]
InitOption = Annotated[
    str | None, typer.Option(metavar="imagenet|random|FILE", help="Its weights at first (default: imagenet).")
]
FrozenOption = Annotated[bool, typer.Option("--frozen", help="Do not train the backbone.")]
AugmentOption = Annotated[
    bool, typer.Option("--augment", help="Change frames (flip, crop, colour) and spectrograms (masks) in training.")
]
BackboneLrOption = Annotated[float | None, typer.Option(help="Learning rate of the backbone (default: 1e-4).")]
MicroBatchOption = Annotated[
    int | None, typer.Option(help="Segments at once on the device, of a larger batch (default: 64).")
]
PrecisionOption = Annotated[
    Literal["fp32", "tf32", "bf16"] | None,
    typer.Option(help="Of the backbone: bf16 is mixed, tf32 of CUDA GPUs (default: fp32)."),
]
CompileOption = Annotated[
    bool, typer.Option("--compile", help="Compile the backbone first, which takes minutes and may pay on a GPU.")
]
FeaturesOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Cached features, repeated or a comma list (default: the paper's three; reproduce: what is there of them);"
        " or of each modality its own: visual=A,audio=B, with alternatives visual=A|B."
    ),
]
FusionOption = Annotated[
    list[str] | None, typer.Option(help="addition (default), concatenation or outer, repeated or a list.")
]
SeedsOption = Annotated[int, typer.Option(help="Runs of each cell, with seeds from 0.")]
HYPER = {  # an option for each hyper-parameter of `Settings` that a command line names, in the order of --help
    "marginal": Annotated[Marginal, typer.Option(help="Support of the marginal in training.")],
    "epochs": Annotated[int, typer.Option(help="Epochs of every classifier.")],
    "lr": Annotated[float, typer.Option(help="Learning rate.")],
    "batch_size": Annotated[
        int | None, typer.Option(help="Segments a batch (default: 256; of a trained backbone --micro-batch).")
    ],
    "hidden": Annotated[int, typer.Option(help="Units of an encoder's hidden layer.")],
    "dim": Annotated[int, typer.Option(help="k, the embedding's width.")],
    "weight_decay": Annotated[float, typer.Option(help="Weight decay.")],
    "dropout": Annotated[float, typer.Option(help="Share of hidden units that a training step leaves out.")],
    "hide": Annotated[float, typer.Option(help="Share of complete rows of which a step hides one modality.")],
    "complete_share": Annotated[
        float | None, typer.Option(help="Complete clips' share of the loss (default: every row counts alike).")
    ],
    "clamp": Annotated[float, typer.Option(help="Most deviations from the mean that an input may be away; 0: any.")],
}
StoreOption = Annotated[
    list[Place] | None,
    typer.Option(
        parser=parse_place, metavar="PATH|URL", help="This very store, instead of looking for one; repeatable."
    ),
]
MethodOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Methods (`list methods`), repeated or a list; only: each modality alone "
        "(default: mle,only; end to end mle)."
    ),
]
MissingOption = Annotated[
    list[str],
    typer.Option(
        help="What training lacks: audio:0.5, audio:0.3+visual:0.3, label:0.5, none, of any modality; repeated or a "
        "list."
    ),
]
MissingTestOption = Annotated[str, typer.Option(help="What validation and test clips lack.")]
SplitOption = Annotated[str, typer.Option(help="clip, or a column whose equal values stay together.")]
SplitsOption = Annotated[Path | None, typer.Option(help="Somebody else's splits, a CSV of `store masks`.")]
MasksOption = Annotated[
    Path | None, typer.Option(help="Somebody else's masks: --missing then names settings of this CSV.")
]
TunedOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Settings that a `tune` into this folder chose for each row.")
]
SaveWeightsOption = Annotated[bool, typer.Option("--save-weights", help="Keep what was trained, for predict.")]
ExhibitArgument = Annotated[
    str, typer.Argument(metavar="table1|table2|figure4|figure5|figure6", help="What of the paper to reproduce.")
]
ExhibitSplitOption = Annotated[
    list[str] | None,
    typer.Option(help="clip or a column, repeated or a list (default: clip,subject; end to end clip)."),
]
SingleOption = Annotated[
    bool | None,
    typer.Option(
        "--single/--no-single", help="Each modality alone, too (default: for cached features of another dataset)."
    ),
]
BudgetOption = Annotated[
    float | None, typer.Option(help="Hours: train seed by seed until the time is up; run again to go on.")
]


def with_settings(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command the options of HYPER in place of its parameter ``hyper``, which gets their values by name."""
    places = {name: getattr(Settings, name) for name in HYPER} | {"batch_size": None}
    parameters = []
    for one in inspect.signature(command).parameters.values():
        options = [one.replace(name=n, default=v, annotation=HYPER[n]) for n, v in places.items()]
        parameters += options if one.name == "hyper" else [one]

    @wraps(command)
    def run(**given: object) -> int:
        return command(hyper={name: given.pop(name) for name in HYPER}, **given)

    run.__signature__ = inspect.Signature(parameters)
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


@with_settings
def train(
    missing: MissingOption,
    features: FeaturesOption = None,
    end_to_end: EndToEndOption = None,
    init: InitOption = None,
    frozen: FrozenOption = False,
    augment: AugmentOption = False,
    backbone_lr: BackboneLrOption = None,
    micro_batch: MicroBatchOption = None,
    precision: PrecisionOption = None,
    compiled: CompileOption = False,
    method: MethodOption = None,
    fusion: FusionOption = None,
    missing_test: MissingTestOption = "none",
    dataset: Annotated[str | None, typer.Option(help="Which dataset's stores (default: the only one).")] = None,
    seeds: SeedsOption = 5,
    split: SplitOption = "clip",
    splits: SplitsOption = None,
    masks: MasksOption = None,
    hyper: Mapping = MappingProxyType({}),
    tuned: TunedOption = None,
    device: DeviceOption = "auto",
    stores: StoresOption = Path("stores"),
    store: StoreOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results (default: runs/DATE-NAME).")] = None,
    save_weights: SaveWeightsOption = False,
    as_json: JsonOption = False,
) -> int:
    """Train every combination of the repeatable options, each with N seeds; print and keep the results."""
    from ..pipeline.encoders.names import DEFAULT
    from ..pipeline.stores.catalogue import open_features, open_store, parse_features
    from ..pipeline.stores.mask_files import read_given
    from ..pipeline.stores.masks import HELD_OUT_LABELS, parse_missing
    from ..pipeline.stores.store import MEDIA
    from .experiments import train as job
    from .experiments.grid import Grid
    from .methods import EACH

    how = {"frozen": frozen, "augment": augment, "backbone_lr": backbone_lr, "compiled": compiled}
    trunk = _end_to_end(end_to_end, init, **how, micro_batch=micro_batch, precision=precision)
    if trunk and features:
        raise InputError("--end-to-end and --features exclude each other: features are cached.\nGive one of them.")
    texts = comma_list(missing)
    for text, why in [(missing_test, HELD_OUT_LABELS), *([] if masks else ((text, None) for text in texts))]:
        parse_missing(text, None, why)  # wrong ones are told before any store is looked for
    settings = settings_from(hyper, trunk)
    wanted = [MEDIA] if trunk else parse_features(features or list(DEFAULT))
    found = list(map(open_store, named_stores(store, features)))
    found = found or [open_features(one, stores, dataset) for one in wanted]
    files = read_given(splits, masks, tuple(dict.fromkeys(name for one in found for name in one.modalities)))
    specs = [files.setting(text) for text in texts]
    held_out, splits_by = files.held_out(missing_test), [files.split_name(split)]
    methods = comma_list(method or (["mle"] if trunk else ["mle", EACH]))
    grid = Grid(methods, comma_list(fusion or ["addition"]), specs, held_out, seeds, splits_by)
    opened = [files.apply(one, seeds, specs) for one in found]
    how = {"end_to_end": trunk, "save_weights": save_weights}
    return finish_training(*job.train(opened, out, grid, _chosen(tuned, settings, trunk), device, **how), as_json)


def finish_training(document: dict, out: Path, as_json: bool) -> int:
    """Print a run's results and say where they are kept; return the exit status."""
    from .report.tables import print_results

    if as_json:
        print_json(document)
    else:
        print_results(document)
    say(f"results: {out / 'results.json'}\nreport:  {out / 'report.html'}")
    return DONE


@with_settings
def reproduce(
    exhibit: ExhibitArgument,
    features: FeaturesOption = None,
    end_to_end: EndToEndOption = None,
    init: InitOption = None,
    frozen: FrozenOption = False,
    augment: AugmentOption = False,
    backbone_lr: BackboneLrOption = None,
    micro_batch: MicroBatchOption = None,
    precision: PrecisionOption = None,
    compiled: CompileOption = False,
    fusion: FusionOption = None,
    split: ExhibitSplitOption = None,
    single: SingleOption = None,
    dataset: Annotated[str | None, typer.Option(help="Which dataset's stores (default: the paper's).")] = None,
    seeds: SeedsOption = 5,
    budget: BudgetOption = None,
    hyper: Mapping = MappingProxyType({}),
    tuned: TunedOption = None,
    device: DeviceOption = "auto",
    stores: StoresOption = Path("stores"),
    store: StoreOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder to work in and go on in (default: runs/EXHIBIT).")] = None,
    as_json: JsonOption = False,
) -> int:
    """Run one of the paper's tables or figures and set our numbers beside the paper's; run again, it goes on."""
    from ..pipeline.stores.catalogue import open_store, parse_features
    from .experiments import paper, side_by_side
    from .experiments import reproduce as job

    wanted = paper.find_exhibit(exhibit)
    how = {"frozen": frozen, "augment": augment, "backbone_lr": backbone_lr, "compiled": compiled}
    named = parse_features(features) if features else None
    if wanted.end_to_end and named:
        raise InputError(f"--features names cached features; {exhibit} trains a backbone.\nName it: --end-to-end.")
    if end_to_end and not wanted.end_to_end:
        raise InputError(f"--end-to-end: {exhibit} is on cached features.\nName others with --features.")
    backbone = (end_to_end or wanted.features[0]) if wanted.end_to_end else None
    trunk = _end_to_end(backbone, init, **how, micro_batch=micro_batch, precision=precision)
    settings = settings_from(hyper, trunk)
    out = writable_folder(out or Path("runs") / wanted.name, "--out")
    if budget is not None and not budget > 0:
        raise InputError(f"a budget of {budget} hours is out of range: expected more than 0.")
    opened, absent = list(map(open_store, named_stores(store, features))), []
    if not opened:
        opened, absent = job.choose_stores(wanted, stores, dataset, named)
    if single is None:  # the paper's exhibits stay as they are, and networks train for hours
        single = trunk is None and all(one.dataset != wanted.dataset for one in opened)
    grid = wanted.grid(comma_list(fusion) if fusion else (), comma_list(split) if split else (), seeds, single)
    more = {"absent": absent, "hours": budget, "end_to_end": trunk}
    compared = job.reproduce(wanted, opened, out, grid, _chosen(tuned, settings, trunk), device, **more)
    if as_json:
        print_json(compared)
    else:
        side_by_side.print_tables(compared)
    say(f"table:   {out / wanted.name}.md (and .json)\nreport:  {out / 'report.html'}")
    return DONE


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a `train --save-weights`.")],
    store: Annotated[
        Place,
        typer.Option(
            parser=parse_stores,
            metavar="PATH|URL",
            help="Store whose clips are predicted, or visual=A,audio=B to join.",
        ),
    ],
    method: Annotated[str | None, typer.Option(help="Where the run has several cells: the method.")] = None,
    fusion: Annotated[str | None, typer.Option(help="The fusion.")] = None,
    missing: Annotated[str | None, typer.Option(help="What its training lacked.")] = None,
    cell: Annotated[str | None, typer.Option(help="A part of the weights file's name.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.csv", help="File to write (default: print).")] = None,
    device: DeviceOption = "auto",
) -> int:
    """Apply trained weights: each clip's label, predicted class and probabilities, the mean over the seeds."""
    import sys

    import torch

    from ..pipeline.encoders import resolve_device
    from ..pipeline.stores.catalogue import open_store
    from . import methods
    from .experiments import weights

    if out is not None:
        writable_file(out, "--out")
    wanted = {"method": methods.resolve(method) if method else None, "fusion": fusion, "cell": cell}
    wanted["missing"] = _missing_name(missing) if missing else None
    where, opened = torch.device(resolve_device(device)), open_store(store)
    path, header = weights.choose(run, opened.features, **wanted)
    say(f"{header['method']} {header['fusion']}, missing {header['missing']}, {len(header['seeds'])} seeds")
    predictions = weights.predict(path, header, opened, where)
    if (opened.dataset, opened.fingerprint) == (header["dataset"], header["store"]):
        say("note: these weights were trained on clips of this very store; no accuracy on them is a test result")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8", newline="") if out else nullcontext(sys.stdout) as file:
        weights.write_predictions(predictions, file)
    failed = len(opened.clip_id) - len(predictions.clip_id)
    say(f"{amount(len(predictions.clip_id), 'clip')} predicted, {failed} failed left out" + (f": {out}" if out else ""))
    return DONE


def _missing_name(text: str) -> str:
    """Return what results call a missing spec: in its own order, else the name of a setting of somebody's masks."""
    from ..pipeline.stores.masks import parse_missing

    try:
        return parse_missing(text, modalities=None).name
    except InputError:
        return text


def report(
    runs: Annotated[list[Path] | None, typer.Argument(help="Folders of runs (default: the latest in runs/).")] = None,
    out: Annotated[Path | None, typer.Option(help="The HTML file (default: report.html in the first run).")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Also results.csv and comparisons.csv, beside it.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="Also results.tex (booktabs), beside it.")] = False,
    site: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Instead, a leaderboard over many runs (default: all in runs/): a web page."),
    ] = None,
    measure: Annotated[
        list[str] | None,
        typer.Option(
            help="Of results.tex: accuracy (default), macro-f1, weighted-f1, uar, nll or ece, repeated or a list."
        ),
    ] = None,
) -> int:
    """Write one self-contained HTML report of one or more runs, with paired comparisons over all of them."""
    from .report.csv_files import export_csv
    from .report.latex import export_latex
    from .report.report import load_runs, write_report
    from .report.tables import MEASURES

    measures = comma_list(measure or ["accuracy"])
    if unknown := [name for name in measures if name not in MEASURES]:
        raise InputError(f"unknown measure {unknown[0]!r}: expected some of {', '.join(MEASURES)}.")
    if measure and not latex:
        raise InputError("--measure says what --latex writes; the report has all measures.\nAdd --latex.")
    if not runs:
        found = [path for path in Path("runs").glob("*/results.json") if not path.with_name("tuned.json").exists()]
        kept = sorted(found, key=lambda path: path.stat().st_mtime)
        if not kept:
            raise InputError("no run in runs/.\nName the folder of a run, or make one with `mlemiss train`.")
        runs = [kept[-1].parent] if site is None else [path.parent for path in kept]
    if site is not None:
        return _leaderboard(runs, site, {"--out": out, "--csv": csv, "--latex": latex})
    out = out or (runs[0] if runs[0].is_dir() else runs[0].parent) / "report.html"
    beside = ["results.csv", "comparisons.csv"] * csv + ["results.tex"] * latex
    for path in (out, *(out.parent / name for name in beside)):
        writable_file(path, "--out")
    documents, comparisons = load_runs(runs)
    write_report(documents, out, comparisons)
    paths = [out]
    if csv:
        paths += export_csv(documents, comparisons, out.parent)
    if latex:
        paths.append(export_latex(documents, out.parent, measures))
    for path in paths:
        say(f"report: {path}")
    return DONE


def _leaderboard(runs: list[Path], folder: Path, others: dict[str, object]) -> int:
    """Write the page of --site. InputError: one of the other options is given too."""
    from .report.site import PAGE, write_site

    if stray := [option for option, value in others.items() if value]:
        raise InputError(f"--site and {stray[0]} exclude each other: a leaderboard has its own page and CSV files.")
    for note in write_site(runs, folder):
        say(f"note: {note}")
    say(f"leaderboard: {folder / PAGE}")
    return DONE


def _end_to_end(backbone: str | None, init: str | None, **given) -> "EndToEnd | None":
    """Return what --end-to-end and the options that belong to it say; None where it is not given.

    InputError: an option that belongs to it without it, or a wrong value.
    """
    given = {name: value for name, value in given.items() if value is not None and value is not False}
    if backbone is None:
        if stray := [*(["init"] if init else []), *given]:
            option = stray[0].replace("_", "-").replace("compiled", "compile")
            raise InputError(f"--{option} belongs to training end to end.\nName a backbone with --end-to-end.")
        return None
    from ..pipeline.encoders import parse_weights
    from ..pipeline.encoders.names import resolve_tag
    from .end_to_end.end_to_end import EndToEnd

    resolve_tag(backbone)
    return EndToEnd(backbone, parse_weights([init or "imagenet"], [backbone])[backbone], **given)


def _chosen(tuned: Path | None, settings: Settings, trunk: "EndToEnd | None") -> "Settings | Tuned":
    """Return the settings, or what --tuned chose. InputError: both are given, or a backbone is trained too."""
    if tuned is None:
        return settings
    if trunk:
        raise InputError("--tuned and --end-to-end exclude each other: tuning is on cached features.")
    if settings != Settings():
        own = ", ".join(f"--{one.name.replace('_', '-')}" for one in fields(Settings) if one.name != "own")
        raise InputError(f"--tuned and settings of your own exclude each other.\nLeave out {own}, or --tuned.")
    from .experiments.tune import Tuned

    return Tuned(tuned)


def settings_from(hyper: Mapping, trunk: "EndToEnd | None" = None) -> Settings:
    """Return the options' settings; by default a trained backbone's batch is one micro-batch: nothing twice."""
    size = trunk.micro_batch if trunk and not trunk.frozen else Settings.batch_size
    return Settings(**hyper | ({"batch_size": size} if hyper["batch_size"] is None else {}))


def named_stores(store: list[Place] | None, features: list[str] | None) -> list[Place]:
    """Return the stores of --store, each once, however its path is written. InputError: --features is given too."""
    if store and features:
        raise InputError("--store and --features exclude each other: a store has its features.\nGive one of them.")
    by_place: dict[Place, Place] = {}
    for path in store or []:
        by_place.setdefault(path.resolve(), path)
    return list(by_place.values())
