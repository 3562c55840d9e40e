"""The verb `tune`."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import typer

from ..pipeline.console import DONE, comma_list, print_json, say, writable_folder
from ..pipeline.errors import InputError
from ..pipeline.options import DeviceOption, JsonOption, StoresOption
from .commands import (
    FeaturesOption,
    FusionOption,
    MethodOption,
    MissingOption,
    MissingTestOption,
    SplitOption,
    StoreOption,
    named_stores,
    settings_from,
    with_settings,
)


@with_settings
def tune(
    missing: MissingOption,
    features: FeaturesOption = None,
    method: MethodOption = None,
    fusion: FusionOption = None,
    missing_test: MissingTestOption = "none",
    dataset: Annotated[str | None, typer.Option(help="Which dataset's stores (default: the only one).")] = None,
    split: SplitOption = "clip",
    draws: Annotated[int, typer.Option(help="Draws of each row, the first of which is the defaults.")] = 30,
    seeds: Annotated[int, typer.Option(help="Runs of each draw, with seeds from 1000.")] = 3,
    space: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=RANGE",
            help="A setting is drawn from: lr=1e-4..1e-2, hidden=64|128, dropout=0; repeatable.",
        ),
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="Hours: only draws that every row trained in time count; run again to go on.")
    ] = None,
    hyper: Mapping = MappingProxyType({}),
    device: DeviceOption = "auto",
    stores: StoresOption = Path("stores"),
    store: StoreOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder to work in and go on in (default: runs/tune).")] = None,
    as_json: JsonOption = False,
) -> int:
    """Draw settings for every method, as many for each, and choose on validation clips; for `train --tuned`."""
    from ..pipeline.encoders.names import DEFAULT
    from ..pipeline.stores.catalogue import open_features, open_store, parse_features
    from . import methods as registry
    from .experiments import tune as job
    from .experiments.grid import Grid
    from .experiments.space import parse_space

    for name, value in (("--draws", draws), ("--seeds", seeds)):
        if value < 1:
            raise InputError(f"{name} {value} is out of range: expected 1 or more.")
    if budget is not None and not budget > 0:
        raise InputError(f"a budget of {budget} hours is out of range: expected more than 0.")
    tuned_on = range(job.FIRST_SEED, job.FIRST_SEED + seeds)
    methods, fusions = comma_list(method or ["mle", registry.EACH]), comma_list(fusion or ["addition"])
    grid = Grid(methods, fusions, comma_list(missing), missing_test, list(tuned_on), [split])
    own = {
        name: rate for one in grid.methods if one != registry.EACH for name, rate in registry.load(one).rates.items()
    }
    drawn_from = parse_space(comma_list(space) if space else [], own)
    settings = settings_from(hyper)
    out = writable_folder(out or Path("runs") / "tune", "--out")
    opened = list(map(open_store, named_stores(store, features)))
    opened = opened or [open_features(one, stores, dataset) for one in parse_features(features or list(DEFAULT))]
    document = job.tune(opened, out, grid, settings, drawn_from, draws, device, hours=budget)
    if as_json:
        print_json(document)
    else:
        job.print_chosen(document)
    if document["draws"] < draws:
        say(f"the time is up: {document['draws']} of {draws} draws of each row count; run the same command to go on")
    say(f"chosen: {out / job.TUNED}\npage:   {out / job.PAGE}\nuse:    mlemiss train --tuned {out} …")
    return DONE
