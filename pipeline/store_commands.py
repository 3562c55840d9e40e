"""The verbs of `mlemiss store`. Whatever is heavy is imported inside the command that needs it."""

from pathlib import Path
from typing import Annotated

import typer

from .console import DONE, FAILURES, JsonOption, StoresOption, comma_list, print_json, writable_file, writable_folder
from .progress import say

app = typer.Typer(
    name="store",
    help="Stores of cached features: list and check them, bring your own features, export splits and masks.",
    no_args_is_help=True,
)


@app.command(name="ls")
def ls(stores: StoresOption = Path("stores"), as_json: JsonOption = False) -> int:
    """List a folder's finished stores."""
    from .store import FeatureStore, stores_in, unusable_in

    rows = []
    for path, attrs in stores_in(stores):
        store = FeatureStore.open(path)
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        rows.append(
            {
                "store": path.name,
                "dataset": attrs["dataset"],
                "features": attrs["features"],
                "weights": store.weights.get("name"),
                "clips": len(store.clip_id),
                "failed": int((store.status == "failed").sum()),
                "bytes": size,
            }
        )
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            print(
                f"{row['store']}: {row['clips']} clips, {row['failed']} failed, weights {row['weights'] or '-'}, "
                f"{row['bytes'] / 1e6:.1f} MB"
            )
        for path, why in unusable_in(stores):
            say(f"not usable: {path.name}, {why}")
        if not rows:
            say(f"no finished stores in {stores}")
    return DONE


@app.command()
def verify(path: Annotated[Path, typer.Argument(help="A store's folder.")]) -> int:
    """Check every byte of a store against its checksums."""
    from .store import FeatureStore, damaged_files

    FeatureStore.open(path)
    damaged = damaged_files(path)
    for name in damaged:
        print(f"damaged, absent or unexpected: {name}")
    say(f"{path}: " + (f"{len(damaged)} files differ from its checksums" if damaged else "every byte as written"))
    return FAILURES if damaged else DONE


@app.command()
def preview(
    path: Annotated[str, typer.Argument(metavar="STORE", help="A store's folder.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Page to write (default: the store's name here).")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Clips to show beside the failed ones.")] = 96,
) -> int:
    """Look at a store: one page that opens offline, failures first; frames and log-Mels, or norms and a projection."""
    from .preview import write_preview
    from .store import FeatureStore

    store = FeatureStore.open(path)
    out = writable_file(out or Path(f"{store.path.absolute().name.removesuffix('.zarr')}.html"), "--out")
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
    stores: StoresOption = Path("stores"),
) -> int:
    """Make a store of features computed elsewhere; prints its path. See docs/own-features.md."""
    from .importing import Request, import_features, parse_maps

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
    path: Annotated[Path, typer.Argument(metavar="STORE", help="A store's folder.")],
    out: Annotated[Path, typer.Option(help="Folder to write splits.csv and masks.csv into.")],
    seeds: Annotated[int, typer.Option(help="Seeds from 0.")] = 5,
    missing: Annotated[
        list[str] | None, typer.Option(help="Settings, repeated or a list (default: those in the store).")
    ] = None,
    split: Annotated[str, typer.Option(help="clip, or a column whose equal values stay together.")] = "clip",
) -> int:
    """Export splits and masks as CSV, for other software and for `train --splits FILE --masks FILE`."""
    from .mask_files import export_masks
    from .store import FeatureStore

    writable_folder(out, "--out")
    store = FeatureStore.open(path)
    settings = comma_list(missing) if missing else store.attrs["settings"]
    for written in export_masks(store, out, seeds, settings, split):
        print(written)
    return DONE
