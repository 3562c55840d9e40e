"""The verbs `synth`, `fetch` and `preprocess`. Whatever is heavy is imported inside the command."""

import os
from pathlib import Path
from typing import Annotated

import typer

from .console import (
    DONE,
    FAILURES,
    DeviceOption,
    JsonOption,
    Progress,
    StoresOption,
    amount,
    comma_list,
    print_json,
    say,
    writable_file,
    writable_folder,
)
from .errors import InputError


def all_cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def synth(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write the clips into.")],
    layout: Annotated[
        str,
        typer.Option(
            help="Names, folders and file format of the data set to imitate: ravdess (mp4), enterface05 (avi)."
        ),
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
    dataset: Annotated[str, typer.Argument(metavar="ravdess", help="The data set.")],
    root: Annotated[
        Path | None, typer.Option(help="Folder for the clips (default: $MLEMISS_DATA/ravdess or data/ravdess).")
    ] = None,
    actors: Annotated[str, typer.Option(help="Only these actors, for example 1,2,5-8.")] = "1-24",
    record: Annotated[
        str | None, typer.Option(envvar="MLEMISS_RAVDESS_RECORD", help="Another address of the record's API.")
    ] = None,
) -> int:
    """Download a data set from its official record: checksums verified, resumed where it was cut, unpacked safely."""
    from .clips import fetch as job
    from .clips.datasets import default_root

    if dataset != "ravdess":
        raise InputError(f"cannot fetch {dataset!r}: only ravdess has a record that anybody may download.")
    root = writable_folder(root or default_root(dataset), "--root")
    chosen = job.parse_actors(actors)
    result = job.fetch_ravdess(root, chosen, record or job.RECORD)
    for name, cause in result.failed.items():
        say(f"failed: {name}: {cause}")
    say(f"{len(result.there) + len(result.unpacked)} of {len(chosen)} actors are in {root}")
    if result.failed:
        return FAILURES
    say(f"Next: mlemiss preprocess --dataset {dataset} --root {root}")
    return DONE


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
    classes: Annotated[
        list[str] | None,
        typer.Option(help="Other classes than the dataset's own, a comma list in the order of their label codes."),
    ] = None,
    local: Annotated[Path, typer.Option(help="Folder to work in where --stores is a URL.")] = Path("stores"),
    limit: Annotated[int | None, typer.Option(help="Only N clips, balanced over classes.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Worker processes (default: all cores); 0: serial, in this process.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="An existing Dask cluster instead (docs/cluster.md).")
    ] = None,
    tls_ca: Annotated[Path | None, typer.Option(help="TLS to the scheduler: PEM file of the authority.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file of this client's certificate.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of this client's key.")] = None,
    performance_report: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write Dask's performance report.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try failed clips again; a finished store gets its next revision.")
    ] = False,
    max_failures: Annotated[
        int | None, typer.Option(help="More failed clips than this are an error, and nothing is published.")
    ] = None,
    clip_timeout: Annotated[float, typer.Option(help="Seconds a clip may take to decode.")] = 600,
    clip_seconds: Annotated[float, typer.Option(help="Longest clip, in seconds.")] = 1800,
    clip_pixels: Annotated[int, typer.Option(help="Largest picture, width times height.")] = 8192 * 8192,
    clip_bytes: Annotated[int, typer.Option(help="Largest file, in bytes.")] = 8 << 30,
    clip_memory: Annotated[int, typer.Option(help="Memory of the process that decodes a clip, in bytes.")] = 4 << 30,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Read clips and enter folders that are links to elsewhere.")
    ] = False,
    device: DeviceOption = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Estimate time and disk, compute nothing.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Decode clips, compute CNN features of every segment, cache them in Zarr stores."""
    from . import preprocess as job
    from .encoders.images import DEFAULT
    from .media.ffmpeg import Limits
    from .run.cluster import Scheduler
    from .stores import share

    existing = Scheduler(scheduler, tls_ca, tls_cert, tls_key) if scheduler else None
    if not scheduler and (tls_ca or tls_cert or tls_key):
        raise InputError("--tls-ca, --tls-cert and --tls-key are for a --scheduler ADDRESS, which is not given.")
    if scheduler and workers is not None:
        raise InputError("--scheduler and --workers exclude each other: a cluster has its workers.\nGive one of them.")
    if performance_report:
        writable_file(performance_report, "--performance-report")
    limits = Limits(clip_timeout, clip_seconds, clip_pixels, clip_bytes, clip_memory)
    how = job.How(
        workers=0 if scheduler else all_cores() if workers is None else workers,
        scheduler=existing,
        report=performance_report,
        retry_failed=retry_failed,
        max_failures=max_failures,
    )
    job.check_options(media, precision, limit, limits, how)
    shared, stores = share.split(stores, local)
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
        classes=comma_list(classes) if classes else None,
        media_mode=media,
        precision=precision,
        device=device,
        limit=limit,
        limits=limits,
        follow_links=follow_links,
        how=how,
        dry_run=dry_run,
        shared=shared,
    )
    if summary is None:
        return DONE
    job.print_summary(summary)
    if shared:
        summary.stores = share.push_made(summary.stores, shared)
    if as_json:
        print_json(summary.as_json())
    return FAILURES if summary.failed else DONE
