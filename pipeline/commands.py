"""The verbs `synth`, `fetch`, `preprocess` and those of `store`. Heavy modules are imported inside the verbs."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from . import options
from .console import (
    DONE,
    FAILURES,
    Progress,
    all_cores,
    amount,
    comma_list,
    print_json,
    print_path,
    say,
    writable_file,
    writable_folder,
)
from .errors import InputError
from .stores.remote import Place, is_local, local_folder, parse_place


def synth(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write the clips into.")],
    layout: Annotated[
        Literal["ravdess", "enterface05"], typer.Option(help="Names, folders and file format (mp4, avi) to imitate.")
    ] = "ravdess",
    subjects: Annotated[
        int | None, typer.Option(help="Number of subjects; at most, and by default, 24 (ravdess), 44 (enterface05).")
    ] = None,
    clips_per_subject: Annotated[
        int | None, typer.Option(help="Clips of each; at most, and by default, 48 (ravdess), 30 (enterface05).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    workers: Annotated[int | None, typer.Option(help="Processes (default: all cores).")] = None,
) -> int:
    """Make real video clips of synthetic faces and voices, each of which tells the class only in part.

    Layout enterface05 has the irregularities of the recorded set, with their subjects: 2, 3, 6 (one file an emotion),
    11, 16 and 23 (three clips absent).
    """
    from .clips.synth import synthesize

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.advance(done - bar.done)

    writable_folder(folder, "DIR")
    with Progress("synth", 0) as bar:
        paths = synthesize(
            folder,
            layout=layout,
            subjects=subjects,
            clips_per_subject=clips_per_subject,
            seed=seed,
            workers=workers or all_cores(),
            progress=show,
        )
    say(f"{amount(len(paths), 'clip')} in {folder}")
    return DONE


def fetch(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="A dataset that has a record, such as ravdess.")],
    root: Annotated[
        Path | None, typer.Option(help="Folder for the clips (default: $MLEMISS_DATA/DATASET or data/DATASET).")
    ] = None,
    parts: Annotated[
        str | None, typer.Option("--parts", "--actors", help="Only these, for example 1,2,5-8; of ravdess the actors.")
    ] = None,
    record: Annotated[
        str | None,
        typer.Option(
            help="Another address of the record's API (default: $MLEMISS_NAME_RECORD, such as MLEMISS_RAVDESS_RECORD)."
        ),
    ] = None,
) -> int:
    """Download a data set from its official record: checksums verified, resumed where it was cut, unpacked safely."""
    from .clips.datasets import default_root, downloadable
    from .clips.fetch import fetch_dataset, parse_parts

    module = downloadable(dataset)
    root = writable_folder(root or default_root(dataset), "--root")
    chosen = sorted(module.DOWNLOAD.zips) if parts is None else parse_parts(parts, module.DOWNLOAD)
    mirror = os.environ.get(f"MLEMISS_{dataset.upper().replace('-', '_')}_RECORD")
    result = fetch_dataset(module, root, chosen, record or mirror)
    for name, cause in result.failed.items():
        say(f"failed: {name}: {cause}")
    say(f"{len(result.there) + len(result.unpacked)} of {len(chosen)} {module.DOWNLOAD.part}s are in {root}")
    if result.failed:
        return FAILURES
    say(f"Next: mlemiss preprocess --dataset {dataset} --root {root}")
    return DONE


# ---- preprocess ----


def preprocess(
    dataset: options.DatasetOption,
    root: options.RootOption = None,
    audio: options.AudioOption = None,
    features: options.BackbonesOption = None,
    weights: options.WeightsOption = None,
    mean: options.MeanOption = None,
    std: options.StdOption = None,
    precision: options.PrecisionOption = "fp32",
    media: options.MediaOption = None,
    waveform: options.WaveformOption = False,
    stores: options.StoresOption = Path("stores"),
    classes: options.ClassesOption = None,
    local: Annotated[Path, typer.Option(help="Folder to work in where --stores is a URL.")] = Path("stores"),
    limit: Annotated[int | None, typer.Option(min=1, help="Only N clips, balanced over classes.")] = None,
    workers: options.WorkersOption = None,
    scheduler: options.SchedulerOption = None,
    tls_ca: Annotated[Path | None, typer.Option(help="TLS to the scheduler: PEM file of the authority.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file of this client's certificate.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of this client's key.")] = None,
    performance_report: options.ReportOption = None,
    dashboard: options.DashboardOption = False,
    retry_failed: options.RetryOption = False,
    max_failures: options.MaxFailuresOption = None,
    clip_timeout: options.TimeoutOption = 600,
    clip_seconds: options.LengthOption = 1800,
    clip_pixels: options.PixelsOption = 8192 * 8192,
    clip_bytes: Annotated[int, typer.Option(min=1, help="Largest file, in bytes.")] = 8 << 30,
    clip_memory: options.MemoryOption = 4 << 30,
    max_damaged: options.DamagedOption = 3,
    channels: options.ChannelsOption = "mean",
    crop: options.CropOption = "centre",
    no_face: options.NoFaceOption = None,
    follow_links: options.LinksOption = False,
    device: options.DeviceOption = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Estimate time and disk, compute nothing.")] = False,
    as_json: options.JsonOption = False,
) -> int:
    """Decode clips, compute features of every segment, cache them in Zarr stores."""
    from . import preprocess as job
    from .encoders import names, parse_weights

    if dry_run and as_json:
        raise InputError("--dry-run has no JSON: its estimate goes to standard error.\nLeave out one of the two.")
    costs = (clip_timeout, clip_seconds, clip_pixels, clip_bytes, clip_memory)
    limits = job.Limits(*costs, max_damaged, channels, crop, no_face)
    shared, stores = _work_places(stores, local)
    chosen = parse_weights(comma_list(weights) if weights else [], comma_list(features or names.DEFAULT), mean, std)
    summary = job.preprocess(
        job.ClipRequest(dataset, root, comma_list(classes) if classes else None, limit, limits, follow_links, audio),
        job.FeatureRequest(chosen, precision, media, waveform),
        stores,
        where=_where(job, workers, scheduler, (tls_ca, tls_cert, tls_key), performance_report, dashboard, device),
        failures=job.FailurePolicy(retry_failed, max_failures),
        dry_run=dry_run,
        shared=shared,
    )
    return _finish(summary, shared, as_json)


def _work_places(stores: Place, local: Path) -> tuple[Place | None, Path]:
    """Return where stores are pushed to, None where that is nowhere, and the folder to make them in."""
    from .stores import share

    shared, folder = (None, stores) if is_local(stores) else (share.writable(stores), local)
    writable_folder(folder, "--stores", read_only=True)
    return shared, folder


def _finish(summary, shared, as_json: bool) -> int:
    from .preprocess import print_summary
    from .stores import share

    if summary is None:  # a dry run
        return DONE
    print_summary(summary)
    if shared:
        summary.stores = share.push_made(summary.stores, shared)
    if as_json:
        print_json(summary.as_json())
    return FAILURES if summary.failed else DONE


def _where(
    job, workers: int | None, scheduler: str | None, tls: tuple, report: Path | None, dashboard: bool, device: str
):
    """Return the `Where` of these options. InputError: they exclude each other."""
    from .run.connect import Scheduler

    if not scheduler and any(tls):
        raise InputError("--tls-ca, --tls-cert and --tls-key are for a --scheduler ADDRESS, which is not given.")
    if scheduler and workers is not None:
        raise InputError("--scheduler and --workers exclude each other: a cluster has its workers.\nGive one of them.")
    if report and workers == 0:
        raise InputError("--performance-report is Dask's, and --workers 0 runs without.\nLeave out one of the two.")
    if report:
        writable_file(report, "--performance-report")
    if dashboard and (scheduler or workers == 0):
        raise InputError(
            "--dashboard is of worker processes on this machine: a --scheduler has its own, --workers 0 has none.\n"
            "Leave it out."
        )
    if scheduler:
        return job.Where(scheduler=Scheduler(scheduler, *tls), device=device, report=report)
    workers = all_cores() if workers is None else workers
    return job.Where(workers, device=device, report=report, dashboard=dashboard)


# ---- mlemiss store ----

store_app = typer.Typer(
    name="store",
    help="Stores of cached features: list, check and share them, bring your own features, export splits and masks.",
    no_args_is_help=True,
)


@store_app.command(name="ls")
def ls(
    where: Annotated[
        Place | None, typer.Argument(parser=parse_place, metavar="[DIR|URL]", help="Stores (default: --stores).")
    ] = None,
    stores: options.StoresOption = Path("stores"),
    as_json: options.JsonOption = False,
) -> int:
    """List a team's finished stores: what they hold, what is missing, and who made them when and how."""
    from .stores.catalogue import catalogue, listing, print_table

    folder = where or stores
    if where is not None and is_local(where) and not where.is_dir():
        raise InputError(f"no folder {where}: expected a folder of stores.\nName one that is there.")
    rows, unusable = catalogue(folder)
    if as_json:
        print_json(rows)
    elif rows:
        print_table(listing(rows))
    for path, why in unusable:
        say(f"not usable: {path.name}, {why}")
    if not rows:
        say(f"no finished stores in {folder}")
    return DONE


@store_app.command()
def info(path: options.StoreArgument, as_json: options.JsonOption = False) -> int:
    """All about a store: weights, classes, failed clips and causes, spec, settings, versions, how it was made."""
    from .stores.catalogue import description, print_table, store_facts
    from .stores.store import FeatureStore

    facts = store_facts(FeatureStore.open(path))
    if as_json:
        print_json(facts)
    else:
        print_table(description(facts))
    return DONE


@store_app.command()
def verify(path: options.StoreArgument, as_json: options.JsonOption = False) -> int:
    """Check every byte of a store against its checksums; name what is damaged, and the clips that this hits."""
    from .stores.catalogue import print_damage
    from .stores.checksums import verify_store
    from .stores.store import FeatureStore

    damage = verify_store(path)
    if not damage["damaged"]:
        FeatureStore.open(path)  # every byte as written, and still no store of mlemiss: an error that says why
    if as_json:
        print_json(damage)
    else:
        print_damage(damage)
    return FAILURES if damage["damaged"] else DONE


@store_app.command()
def push(
    places: Annotated[
        list[Place],
        typer.Argument(parser=parse_place, metavar="STORE... DIR|URL", help="Stores, then where to push them."),
    ],
) -> int:
    """Copy finished stores into a shared folder or s3:// place; run again, a push that was cut short goes on."""
    from .stores.share import push as push_store

    if len(places) < 2:
        raise InputError(f"push {places[0]} where? Name a folder or s3://BUCKET/FOLDER after the stores.")
    *stores, destination = places
    for store in stores:
        _print_copied(push_store(store, destination))
    return DONE


@store_app.command()
def pull(
    places: Annotated[
        list[Place],
        typer.Argument(parser=parse_place, metavar="STORE...", help="Stores: URLs, or folders of a shared disk."),
    ],
    stores: options.FolderOption = Path("stores"),
) -> int:
    """Copy finished stores to this machine; run again, a pull that was cut short goes on."""
    from .stores.share import pull as pull_store

    folder = writable_folder(local_folder(stores, "--stores"), "--stores")
    for source in places:
        _print_copied(pull_store(source, folder))
    return DONE


def _print_copied(done) -> None:
    sent, present = amount(done.sent, "file"), done.there
    say(f"{sent} copied and checked on arrival, {present} there already" if done.sent else "there already")
    print_path(done.path)


@store_app.command()
def preview(
    path: options.StoresArgument,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Page to write (default: the store's name here).")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Clips to show beside the failed ones.")] = 96,
) -> int:
    """Look at a store: one page that opens offline, failures first; frames and log-Mels, or norms and a projection."""
    from .preview.preview import write_preview
    from .stores.catalogue import open_store

    store = open_store(path)
    out = writable_file(out or Path(f"{store.path.resolve().name.removesuffix('.zarr')}.html"), "--out")
    shown, size = write_preview(store, out, limit)
    say(f"{shown.text()}\n{out}: {size / 1e6:.1f} MB")
    print_path(out)
    return DONE


@store_app.command(name="import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE.npz|.csv|.arff|.parquet", help="Labels of all clips.")],
    dataset: Annotated[str, typer.Option(help="What to call the data set.")],
    features: Annotated[str, typer.Option(help="What to call these features, for `train --features`.")],
    map_: options.MapOption,
    label: Annotated[str, typer.Option(help="Array or column of the classes, words or whole numbers.")],
    clip: options.ClipOption = None,
    subject: Annotated[str | None, typer.Option(help="Who is seen and heard, for `train --split subject`.")] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="More arrays or columns with one value a clip to keep, repeated or a list.")
    ] = None,
    segments: options.SegmentsOption = None,
    pool: options.PoolOption = None,
    not_finite: options.NotFiniteOption = "error",
    zero: options.ZeroOption = "keep",
    confidence: options.ConfidenceOption = None,
    stores: options.FolderOption = Path("stores"),
) -> int:
    """Make a store of features computed elsewhere; prints its path. See docs/own-features.md."""
    from .importing.importing import Request, import_features, parse_maps
    from .importing.steps import Rules

    stores = local_folder(stores, "--stores")
    writable_folder(stores, "--stores", read_only=True)
    columns = tuple(comma_list(column)) if column else ()
    maps, rules = parse_maps(comma_list(map_)), Rules(segments, pool, not_finite, zero, confidence)
    request = Request(file, dataset, features, maps, label, clip, subject, columns, rules)
    print_path(import_features(request, stores))
    return DONE


@store_app.command()
def masks(
    path: options.StoresArgument,
    out: Annotated[Path, typer.Option(help="Folder to write splits.csv and masks.csv into.")],
    seeds: Annotated[int, typer.Option(help="Seeds from 0.")] = 5,
    missing: Annotated[
        list[str] | None, typer.Option(help="Settings, repeated or a list (default: those in the store).")
    ] = None,
    split: Annotated[str, typer.Option(help="clip, or a column whose equal values stay together.")] = "clip",
) -> int:
    """Export splits and masks as CSV, for other software and for `train --splits FILE --masks FILE`."""
    from .stores.catalogue import open_store
    from .stores.mask_files import export_masks

    writable_folder(out, "--out")
    store = open_store(path)
    settings = comma_list(missing) if missing else store.attrs["settings"]
    for written in export_masks(store, out, seeds, settings, split):
        print_path(written)
    return DONE
