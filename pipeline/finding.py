"""Which stores a folder of stores holds, and the one that is asked for."""

from collections.abc import Iterator

from .backbones import is_backbone
from .errors import InputError
from .places import Place, in_parallel, is_local
from .store import MEDIA, FeatureStore, read_attributes


def look_through(folder: Place) -> Iterator[tuple[Place, dict | InputError]]:
    """Everything of a folder that is called NAME.zarr, by name: its attributes, or why it cannot be opened.

    InputError: the folder is behind a URL and cannot be reached or listed.
    """
    if is_local(folder):
        found = sorted(folder.glob("*.zarr"))
    else:
        found = [path for path in folder.iterdir() if path.name.endswith(".zarr")]

    def look(path: Place) -> dict | InputError:
        try:
            return read_attributes(path)
        except InputError as error:
            return error

    yield from sorted(in_parallel(look, found), key=lambda pair: pair[0])


def stores_in(folder: Place) -> Iterator[tuple[Place, dict]]:
    """Finished stores of a folder with their attributes, by name; others' files and unfinished stores are passed by."""
    for path, attrs in look_through(folder):
        if not isinstance(attrs, InputError):
            yield path, attrs


def unusable_in(folder: Place) -> Iterator[tuple[Place, str]]:
    """What looks like a store and cannot be opened, and why, in one line."""
    for path, error in look_through(folder):
        if isinstance(error, InputError):
            yield path, why_not(path, error)


def why_not(path: Place, error: InputError) -> str:
    """Why a store cannot be opened, in one line without its path."""
    return str(error).split("\n")[0].removeprefix(str(path)).strip().rstrip(".")


def how_to_make(features: str, dataset: str) -> str:
    """The command that makes a store of these features."""
    if features == MEDIA:
        return f"mlemiss preprocess --dataset {dataset} --media only"
    if is_backbone(features):
        return f"mlemiss preprocess --dataset {dataset} --features {features}"
    return f"mlemiss store import FILE --dataset {dataset} --features {features} --map …"


def find_store(folder: Place, features: str, dataset: str | None = None) -> Place:
    """The one store of these features in a folder of stores. InputError: none or several fit (they are listed)."""
    everything = list(stores_in(folder))
    datasets = sorted({attrs["dataset"] for _, attrs in everything})
    fitting = [
        (path, attrs)
        for path, attrs in everything
        if attrs["features"] == features and dataset in (None, attrs["dataset"])
    ]
    if dataset is None and len(datasets) > 1:
        raise InputError(
            f"stores of several datasets in {folder}: {', '.join(datasets)}.\nChoose one with --dataset NAME."
        )
    if len(fitting) == 1:
        return fitting[0][0]
    wanted = f"{features} features" + (f" of {dataset}" if dataset else "")
    if not fitting:
        there = ", ".join(path.name for path, _ in everything) or "none"
        unusable = "".join(f"; not usable: {path.name}, {why}" for path, why in unusable_in(folder))
        raise InputError(
            f"no finished store of {wanted} in {folder} (stores there: {there}{unusable}).\n"
            f"Make one with `{how_to_make(features, dataset or 'NAME')}`."
        )
    rows = "; ".join(
        f"{path} ({len(FeatureStore.open(path).clip_id)} clips, weights {(attrs['weights'] or {}).get('name')})"
        for path, attrs in fitting
    )
    raise InputError(f"{len(fitting)} stores of {wanted} fit: {rows}.\nChoose one with --store PATH.")
