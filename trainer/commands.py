"""The verbs `train`, `tune`, `reproduce`, `predict` and `report`. Whatever is heavy is imported inside the command."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

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
from ..pipeline.stores.remote import Place
from .options import (
    AugmentOption,
    BackboneLrOption,
    BudgetOption,
    CompileOption,
    EndToEndOption,
    ExhibitArgument,
    ExhibitSplitOption,
    FeaturesOption,
    FrozenOption,
    FusionOption,
    Hyper,
    InitOption,
    MasksOption,
    MethodOption,
    MicroBatchOption,
    MissingOption,
    MissingTestOption,
    PrecisionOption,
    SaveWeightsOption,
    SeedsOption,
    SingleOption,
    SpaceOption,
    SplitOption,
    SplitsOption,
    StoreOption,
    TunedOption,
    chosen_settings,
    end_to_end_from,
    find_stores,
    named_stores,
    settings_from,
    with_settings,
)


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
    missing_test: MissingTestOption = None,
    dataset: Annotated[str | None, typer.Option(help="Which dataset's stores (default: the only one).")] = None,
    seeds: SeedsOption = 5,
    split: SplitOption = "clip",
    splits: SplitsOption = None,
    masks: MasksOption = None,
    hyper: Hyper = Hyper(),
    tuned: TunedOption = None,
    device: DeviceOption = "auto",
    stores: StoresOption = Path("stores"),
    store: StoreOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results (default: runs/DATE-NAME).")] = None,
    save_weights: SaveWeightsOption = False,
    as_json: JsonOption = False,
) -> int:
    """Train every combination of the repeatable options, each with N seeds; print and keep the results."""
    from ..pipeline.stores.mask_files import read_given
    from ..pipeline.stores.store import MEDIA
    from .experiments import train as job
    from .experiments.grid import Grid
    from .methods import EACH

    how = {"frozen": frozen, "augment": augment, "backbone_lr": backbone_lr, "compiled": compiled}
    trunk = end_to_end_from(end_to_end, init, **how, micro_batch=micro_batch, precision=precision)
    if trunk and features:
        raise InputError("--end-to-end and --features exclude each other: features are cached.\nGive one of them.")
    tests = comma_list(missing_test or ["none"])
    texts = checked_specs(missing, tests, masks)
    settings = chosen_settings(tuned, hyper, trunk)
    found = find_stores(store, [MEDIA] if trunk and not store else features, stores, dataset)
    files = read_given(splits, masks, found)
    specs = [files.setting(text) for text in texts]
    held_out, splits_by = [files.held_out(text) for text in tests], [files.split_name(split)]
    methods = comma_list(method or (["mle"] if trunk else ["mle", EACH]))
    grid = Grid(methods, comma_list(fusion or ["addition"]), specs, held_out, seeds, splits_by)
    opened = [files.apply(one, grid.seeds, specs) for one in found]
    how = {"end_to_end": trunk, "save_weights": save_weights}
    return finish_training(*job.train(opened, out, grid, settings, device, **how), as_json)


def checked_specs(missing: list[str], missing_test: Sequence[str], masks: Path | None) -> list[str]:
    """Return what --missing names, of a masks file or specs; no store is looked for. InputError: a wrong spec."""
    from ..pipeline.stores.masks import HELD_OUT_LABELS, parse_missing

    texts = comma_list(missing)
    for text in missing_test:
        parse_missing(text, None, HELD_OUT_LABELS)
    for text in () if masks else texts:
        parse_missing(text, None)
    return texts


def finish_training(document: dict, out: Path, as_json: bool) -> int:
    """Print a run's results and say where they are kept; return the exit status."""
    from .report.tables import print_results

    if as_json:
        print_json(document)
    else:
        print_results(document)
        if any(result.get("tests") for result in document["results"]):
            from .report.matrix import print_matrices

            print_matrices(document)
    say(f"results: {out / 'results.json'}\nreport:  {out / 'report.html'}")
    return DONE


@with_settings
def tune(
    missing: MissingOption,
    features: FeaturesOption = None,
    method: MethodOption = None,
    fusion: FusionOption = None,
    missing_test: Annotated[str, typer.Option(help="What validation clips lack.")] = "none",
    dataset: Annotated[str | None, typer.Option(help="Which dataset's stores (default: the only one).")] = None,
    split: SplitOption = "clip",
    splits: SplitsOption = None,
    masks: MasksOption = None,
    draws: Annotated[int, typer.Option(help="Draws of each row, the first of which is the defaults.")] = 30,
    seeds: Annotated[int, typer.Option(help="Runs of each draw.")] = 3,
    first_seed: Annotated[int, typer.Option(help="Their first seed; none of them can be reported.")] = 1000,
    space: SpaceOption = None,
    budget: Annotated[
        float | None, typer.Option(help="Hours: only draws that every row trained in time count; run again to go on.")
    ] = None,
    hyper: Hyper = Hyper(),
    device: DeviceOption = "auto",
    stores: StoresOption = Path("stores"),
    store: StoreOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder to work in and go on in (default: runs/tune).")] = None,
    as_json: JsonOption = False,
) -> int:
    """Draw settings for every method, as many for each, and choose on validation clips; for `train --tuned`."""
    from ..pipeline.stores.mask_files import read_given
    from . import methods as registry
    from .experiments import tune as job
    from .experiments.grid import Grid
    from .experiments.space import parse_space

    for name, value, least in (("--draws", draws, 1), ("--seeds", seeds, 1), ("--first-seed", first_seed, 0)):
        if value < least:
            raise InputError(f"{name} {value} is out of range: expected {least} or more.")
    if budget is not None and not budget > 0:
        raise InputError(f"a budget of {budget} hours is out of range: expected more than 0.")
    if "," in missing_test:
        raise InputError(f"--missing-test {missing_test}: tune chooses by one, found several.\nName one of them.")
    texts = checked_specs(missing, [missing_test], masks)
    methods, fusions = comma_list(method or ["mle", registry.EACH]), comma_list(fusion or ["addition"])
    own = {name: rate for one in methods if one != registry.EACH for name, rate in registry.load(one).rates.items()}
    drawn_from = parse_space(comma_list(space) if space else [], own)
    settings = settings_from(hyper)
    out = writable_folder(out or Path("runs") / "tune", "--out")
    found = find_stores(store, features, stores, dataset)
    files = read_given(splits, masks, found)
    specs = [files.setting(text) for text in texts]
    tuned_on, splits_by = range(first_seed, first_seed + seeds), list(map(files.split_name, comma_list([split])))
    grid = Grid(methods, fusions, specs, files.held_out(missing_test), tuned_on, splits_by)
    opened = [files.apply(one, grid.seeds, specs) for one in found]
    document = job.tune(opened, out, grid, settings, drawn_from, draws, device, hours=budget)
    if as_json:
        print_json(document)
    else:
        job.print_chosen(document)
    if document["draws"] < draws:
        say(f"the time is up: {document['draws']} of {draws} draws of each row count; run the same command to go on")
    say(f"chosen: {out / job.TUNED}\npage:   {out / job.PAGE}\nuse:    mlemiss train --tuned {out} …")
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
    hyper: Hyper = Hyper(),
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
    trunk = end_to_end_from(backbone, init, **how, micro_batch=micro_batch, precision=precision)
    settings = chosen_settings(tuned, hyper, trunk)
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
    compared = job.reproduce(wanted, opened, out, grid, settings, device, **more)
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
        if out.suffix.lower() in (".html", ".htm", ".json", ".npz"):
            raise InputError(f"--out {out}: predictions are written as CSV.\nName it FILE.csv.")
    wanted = {"method": methods.resolve(method) if method else None, "fusion": fusion, "cell": cell}
    wanted["missing"] = _missing_name(missing) if missing else None
    where, opened = torch.device(resolve_device(device)), open_store(store)
    path, header = weights.choose(run, opened.features, **wanted)
    say(f"{header['method']} {header['fusion']}, missing {header['missing']}, {amount(len(header['seeds']), 'seed')}")
    predictions = weights.predict(path, header, opened, where)
    trained, here = header.get("joined") or {}, opened.joined or {}
    same = opened.fingerprint == header["store"] or any(trained.get(name) == one for name, one in here.items())
    if same and opened.dataset == header["dataset"]:
        say("note: these weights were trained on clips of this very store; no accuracy on them is a test result")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8", newline="") if out else nullcontext(sys.stdout) as file:
        weights.write_predictions(predictions, file)
    failed = int((~opened.done).sum())
    empty = len(opened.clip_id) - len(predictions.clip_id) - failed
    left_out = f"{failed} failed" + f" and {empty} without any modality" * bool(empty) + " left out"
    say(f"{amount(len(predictions.clip_id), 'clip')} predicted, {left_out}" + (f": {out}" if out else ""))
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
    from .evaluate import MEASURES
    from .experiments.tuned import DRAWS
    from .report.csv_files import export_csv
    from .report.latex import export_latex
    from .report.report import write_report
    from .report.runs import load_runs

    measures = comma_list(measure or ["accuracy"])
    if unknown := [name for name in measures if name not in MEASURES]:
        raise InputError(f"unknown measure {unknown[0]!r}: expected some of {', '.join(MEASURES)}.")
    if measure and not latex:
        raise InputError("--measure says what --latex writes; the report has all measures.\nAdd --latex.")
    if not runs:
        found = [path for path in Path("runs").glob("*/results.json") if not path.with_name(DRAWS).exists()]
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
    documents, comparisons, told = load_runs(runs)
    for note in told:
        say(f"note: {note}")
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
