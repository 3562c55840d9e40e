"""The verbs `train`, `reproduce`, `predict` and `report`. Whatever is heavy is imported inside the command."""

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
from ..pipeline.options import DeviceOption, JsonOption, StoresOption
from ..pipeline.stores.remote import Place, place
from .options import (
    AugmentOption,
    BackboneLrOption,
    BatchSizeOption,
    CompileOption,
    DimOption,
    EndToEndOption,
    EpochsOption,
    FeaturesOption,
    FrozenOption,
    FusionOption,
    HiddenOption,
    InitOption,
    LrOption,
    MarginalOption,
    MicroBatchOption,
    PrecisionOption,
    SeedsOption,
    StoreOption,
    WeightDecayOption,
    batch_size_of,
    end_to_end_of,
    named_stores,
)
from .settings import Settings


def train(
    missing: Annotated[
        list[str], typer.Option(help="What training lacks: audio:0.5, audio:0.3+visual:0.3, none; repeated or a list.")
    ],
    features: FeaturesOption = None,
    end_to_end: EndToEndOption = None,
    init: InitOption = None,
    frozen: FrozenOption = False,
    augment: AugmentOption = False,
    backbone_lr: BackboneLrOption = None,
    micro_batch: MicroBatchOption = None,
    precision: PrecisionOption = None,
    compiled: CompileOption = False,
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
    batch_size: BatchSizeOption = None,
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
    from ..pipeline.encoders.images import DEFAULT
    from ..pipeline.stores.catalogue import find_store
    from ..pipeline.stores.mask_files import read_given
    from ..pipeline.stores.store import MEDIA, FeatureStore
    from .experiments import job

    files = read_given(splits, masks)
    specs = [files.setting(text) for text in comma_list(missing)]
    held_out, split = files.held_out(missing_test).name, files.split_name(split)
    how = {"frozen": frozen, "augment": augment, "backbone_lr": backbone_lr, "compiled": compiled}
    trunk = end_to_end_of(end_to_end, init, **how, micro_batch=micro_batch, precision=precision)
    sizes = {"batch_size": batch_size_of(batch_size, trunk), "hidden": hidden, "dim": dim}
    settings = Settings(epochs=epochs, lr=lr, **sizes, weight_decay=weight_decay, marginal=marginal)
    if trunk and features:
        raise InputError("--end-to-end and --features exclude each other: features are cached.\nGive one of them.")
    names = [MEDIA] if trunk else comma_list(features or list(DEFAULT))
    paths = named_stores(store, features) or [find_store(stores, name, dataset) for name in names]
    document, out = job.train(
        [files.apply(FeatureStore.open(path), seeds, specs) for path in paths],
        out,
        end_to_end=trunk,
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
    finish_training(document, out, as_json)
    return DONE


def finish_training(document: dict, out: Path, as_json: bool) -> None:
    """Print a run's results and say where they are kept."""
    from .report.tables import print_results

    if as_json:
        print_json(document)
    else:
        print_results(document)
    say(f"results: {out / 'results.json'}\nreport:  {out / 'report.html'}")


def reproduce(
    exhibit: Annotated[
        str, typer.Argument(metavar="table1|table2|figure4|figure5|figure6", help="What of the paper to reproduce.")
    ],
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
    split: Annotated[
        list[str] | None,
        typer.Option(help="clip or a column, repeated or a list (default: clip,subject; end to end clip)."),
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Which dataset's stores (default: the paper's).")] = None,
    seeds: SeedsOption = 5,
    budget: Annotated[
        float | None, typer.Option(help="Hours: fewer seeds, then fewer rows, as an estimate has it.")
    ] = None,
    marginal: MarginalOption = Settings.marginal,
    epochs: EpochsOption = Settings.epochs,
    lr: LrOption = Settings.lr,
    batch_size: BatchSizeOption = None,
    hidden: HiddenOption = Settings.hidden,
    dim: DimOption = Settings.dim,
    weight_decay: WeightDecayOption = Settings.weight_decay,
    device: DeviceOption = "auto",
    stores: StoresOption = Path("stores"),
    store: StoreOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder to work in and go on in (default: runs/EXHIBIT).")] = None,
    as_json: JsonOption = False,
) -> int:
    """Run one of the paper's tables or figures and set our numbers beside the paper's; run again, it goes on."""
    from ..pipeline.stores.store import FeatureStore
    from .experiments import reproduce as job
    from .experiments import side_by_side

    wanted = job.find_exhibit(exhibit)
    how = {"frozen": frozen, "augment": augment, "backbone_lr": backbone_lr, "compiled": compiled}
    named = comma_list(features) if features else None
    if wanted.end_to_end and named:
        raise InputError(f"--features names cached features; {exhibit} trains a backbone.\nName it: --end-to-end.")
    if end_to_end and not wanted.end_to_end:
        raise InputError(f"--end-to-end: {exhibit} is on cached features.\nName others with --features.")
    backbone = (end_to_end or wanted.features[0]) if wanted.end_to_end else None
    trunk = end_to_end_of(backbone, init, **how, micro_batch=micro_batch, precision=precision)
    sizes = {"batch_size": batch_size_of(batch_size, trunk), "hidden": hidden, "dim": dim}
    settings = Settings(epochs=epochs, lr=lr, **sizes, weight_decay=weight_decay, marginal=marginal)
    out = writable_folder(out or Path("runs") / wanted.name, "--out")
    if budget is not None and not budget > 0:
        raise InputError(f"a budget of {budget} hours is out of range: expected more than 0.")
    opened, absent = list(map(FeatureStore.open, named_stores(store, features))), []
    if not opened:
        opened, absent = job.choose_stores(wanted, stores, dataset, named)
    compared = job.reproduce(
        wanted,
        opened,
        out,
        fusions=comma_list(fusion or list(wanted.fusions)),
        splits=comma_list(split or list(wanted.splits)),
        seeds=seeds,
        settings=settings,
        device=device,
        absent=absent,
        budget=budget,
        end_to_end=trunk,
    )
    if as_json:
        print_json(compared)
    else:
        side_by_side.print_tables(compared)
    say(f"table:   {out / wanted.name}.md (and .json)\nreport:  {out / 'report.html'}")
    return DONE


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a `train --save-weights`.")],
    store: Annotated[
        Place, typer.Option(parser=place, metavar="PATH|URL", help="Store of features whose clips are predicted.")
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

    from ..pipeline.stores.store import FeatureStore
    from . import methods
    from .experiments import predict as job
    from .experiments.experiments import choose_device

    if out is not None:
        writable_file(out, "--out")
    wanted = {"method": methods.resolve(method) if method else None, "fusion": fusion, "cell": cell}
    wanted["missing"] = _missing_name(missing) if missing else None
    where, opened = choose_device(device), FeatureStore.open(store)
    path, header = job.choose(run, opened.features, **wanted)
    say(f"{header['method']} {header['fusion']}, missing {header['missing']}, {len(header['seeds'])} seeds")
    predictions = job.predict(path, header, opened, where)
    if (opened.dataset, opened.fingerprint) == (header["dataset"], header["store"]):
        say("note: these weights were trained on clips of this very store; no accuracy on them is a test result")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8", newline="") if out else nullcontext(sys.stdout) as file:
        job.write_csv(predictions, file)
    failed = len(opened.clip_id) - len(predictions.clip_id)
    say(f"{amount(len(predictions.clip_id), 'clip')} predicted, {failed} failed left out" + (f": {out}" if out else ""))
    return DONE


def _missing_name(text: str) -> str:
    """As results call it: a spec in its own order, else the name of a setting of somebody's masks."""
    from ..pipeline.stores.masks import parse_missing

    try:
        return parse_missing(text).name
    except InputError:
        return text


def report(
    runs: Annotated[list[Path] | None, typer.Argument(help="Folders of runs (default: the latest in runs/).")] = None,
    out: Annotated[Path | None, typer.Option(help="The HTML file (default: report.html in the first run).")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Also results.csv and comparisons.csv, beside it.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="Also results.tex (booktabs), beside it.")] = False,
) -> int:
    """Write one self-contained HTML report of one or more runs, with paired comparisons over all of them."""
    from .report.export import write_csv, write_latex
    from .report.report import load_runs, write_report

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
