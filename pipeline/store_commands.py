"""The verbs of `mlemiss store`. Whatever is heavy is imported inside the command that needs it."""

from pathlib import Path
from typing import Annotated

import typer

from .console import (
    DONE,
    FAILURES,
    FolderOption,
    JsonOption,
    StoreArgument,
    StoresOption,
    amount,
    comma_list,
    print_json,
    say,
    writable_file,
    writable_folder,
)
from .errors import InputError
from .stores.remote import Place, local_folder, place

app = typer.Typer(
    name="store",
    help="Stores of cached features: list, check and share them, bring your own features, export splits and masks.",
    no_args_is_help=True,
)


@app.command(name="ls")
def ls(
    where: Annotated[
        Place | None, typer.Argument(parser=place, metavar="[DIR|URL]", help="Stores (default: --stores).")
    ] = None,
    stores: StoresOption = Path("stores"),
    as_json: JsonOption = False,
) -> int:
    """List a team's finished stores: what they hold, what is missing, and who made them when and how."""
    from .stores.catalogue import catalogue, table

    folder = where or stores
    rows, unusable = catalogue(folder)
    if as_json:
        print_json(rows)
    elif rows:
        print("\n".join(table(rows)))
    for path, why in unusable:
        say(f"not usable: {path.name}, {why}")
    if not rows:
        say(f"no finished stores in {folder}")
    return DONE


@app.command()
def info(path: StoreArgument, as_json: JsonOption = False) -> int:
    """All about a store: weights, classes, failed clips and causes, spec, settings, versions, how it was made."""
    from .stores.catalogue import describe, description
    from .stores.store import FeatureStore

    facts = describe(FeatureStore.open(path))
    if as_json:
        print_json(facts)
    else:
        print("\n".join(description(facts)))
    return DONE


@app.command()
def verify(path: StoreArgument, as_json: JsonOption = False) -> int:
    """Check every byte of a store against its checksums; name what is damaged, and the clips that this hits."""
    from .stores.catalogue import print_damage, verify_store

    found = verify_store(path)
    if as_json:
        print_json(found)
    else:
        print_damage(found)
    return FAILURES if found["damaged"] else DONE


@app.command()
def push(
    places: Annotated[
        list[Place], typer.Argument(parser=place, metavar="STORE... DIR|URL", help="Stores, then where to push them.")
    ],
) -> int:
    """Copy finished stores into a shared folder or s3:// place; run again, a push that was cut short goes on."""
    from .stores.share import push as push_store

    if len(places) < 2:
        raise InputError(f"push {places[0]} where? Name a folder or s3://BUCKET/FOLDER after the stores.")
    *stores, destination = places
    for store in stores:
        done = push_store(store, destination)
        _tell(done.place, done.sent, done.found)
    return DONE


@app.command()
def pull(
    places: Annotated[
        list[Place], typer.Argument(parser=place, metavar="STORE...", help="Stores: URLs, or folders of a shared disk.")
    ],
    stores: FolderOption = Path("stores"),
) -> int:
    """Copy finished stores to this machine; run again, a pull that was cut short goes on."""
    from .stores.share import pull as pull_store

    folder = writable_folder(local_folder(stores, "--stores"), "--stores")
    for source in places:
        done = pull_store(source, folder)
        _tell(done.place, done.sent, done.found)
    return DONE


def _tell(where: Place, sent: int, found: int) -> None:
    say(f"{amount(sent, 'file')} copied and checked on arrival, {found} there already" if sent else "there already")
    print(where)


@app.command()
def preview(
    path: StoreArgument,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Page to write (default: the store's name here).")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Clips to show beside the failed ones.")] = 96,
) -> int:
    """Look at a store: one page that opens offline, failures first; frames and log-Mels, or norms and a projection."""
    from .stores.preview import write_preview
    from .stores.store import FeatureStore

    store = FeatureStore.open(path)
    out = writable_file(out or Path(f"{store.path.resolve().name.removesuffix('.zarr')}.html"), "--out")
    shown, size = write_preview(store, out, limit)
    say(f"{shown.text()}\n{out}: {size / 1e6:.1f} MB")
    print(out)
    return DONE


@app.command(name="import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE.npz|.parquet|.csv", help="Features of all clips.")],
    dataset: Annotated[str, typer.Option(help="What to call the data set.")],
    features: Annotated[str, typer.Option(help="What to call these features, for `train --features`.")],
    map_: Annotated[
        list[str],
        typer.Option(
            "--map", help="visual=ARRAY and audio=ARRAY: arrays, or columns or globs of columns (visual=face_*)."
        ),
    ],
    label: Annotated[str, typer.Option(help="Array or column of the classes, words or whole numbers.")],
    clip: Annotated[
        str | None, typer.Option(help="Clip ids (default: row numbers); rows that share one are its segments.")
    ] = None,
    subject: Annotated[str | None, typer.Option(help="Who is seen and heard, for `train --split subject`.")] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="More arrays or columns with one value a clip to keep, repeated or a list.")
    ] = None,
    stores: FolderOption = Path("stores"),
) -> int:
    """Make a store of features computed elsewhere; prints its path. See docs/own-features.md."""
    from .stores.importing import Request, import_features, parse_maps

    stores = local_folder(stores, "--stores")
    if not stores.is_dir():  # which may be read only where it has this store already
        writable_folder(stores, "--stores")
    request = Request(
        file=file,
        dataset=dataset,
        features=features,
        maps=parse_maps(comma_list(map_)),
        label=label,
        clip=clip,
        subject=subject,
        columns=tuple(comma_list(column)) if column else (),
    )
    print(import_features(request, stores))
    return DONE


@app.command()
def masks(
    path: StoreArgument,
    out: Annotated[Path, typer.Option(help="Folder to write splits.csv and masks.csv into.")],
    seeds: Annotated[int, typer.Option(help="Seeds from 0.")] = 5,
    missing: Annotated[
        list[str] | None, typer.Option(help="Settings, repeated or a list (default: those in the store).")
    ] = None,
    split: Annotated[str, typer.Option(help="clip, or a column whose equal values stay together.")] = "clip",
) -> int:
    """Export splits and masks as CSV, for other software and for `train --splits FILE --masks FILE`."""
    from .stores.mask_files import export_masks
    from .stores.store import FeatureStore

    writable_folder(out, "--out")
    store = FeatureStore.open(path)
    settings = comma_list(missing) if missing else store.attrs["settings"]
    for written in export_masks(store, out, seeds, settings, split):
        print(written)
    return DONE
