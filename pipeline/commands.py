"""The verbs `synth` and `preprocess`. Whatever is heavy is imported inside the command."""

import os
from pathlib import Path
from typing import Annotated

import typer

from .console import DONE, FAILURES, DeviceOption, JsonOption, StoresOption, comma_list, print_json, writable_folder
from .errors import InputError
from .progress import Progress, say


def all_cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def synth(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write the clips into.")],
    layout: Annotated[str, typer.Option(help="Naming and folders of the data set to imitate: ravdess.")] = "ravdess",
    subjects: Annotated[int, typer.Option(help="Number of subjects, at most 24.")] = 24,
    clips_per_subject: Annotated[int, typer.Option(help="Clips of each subject, at most 48.")] = 48,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    workers: Annotated[int | None, typer.Option(help="Processes (default: all cores).")] = None,
) -> int:
    """Make real video clips of synthetic faces and voices, each of which tells the class only in part."""
    from .synth import synthesize

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
    local: Annotated[Path, typer.Option(help="Folder to work in where --stores is a URL.")] = Path("stores"),
    limit: Annotated[int | None, typer.Option(help="Only N clips, balanced over classes.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Worker processes (default: all cores); 0: serial, in this process.")
    ] = None,
    device: DeviceOption = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Estimate time and disk, compute nothing.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Decode clips, compute CNN features of every segment, cache them in Zarr stores."""
    from . import preprocess as job
    from . import share
    from .backbones import DEFAULT

    workers = all_cores() if workers is None else workers
    job.check_options(media, precision, limit, workers)
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
        media_mode=media,
        precision=precision,
        device=device,
        workers=workers,
        limit=limit,
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
