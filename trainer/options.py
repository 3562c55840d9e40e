"""Options that `train` and `reproduce` share. Imports nothing heavy."""

from typing import Annotated

import typer

from ..pipeline.errors import InputError
from ..pipeline.places import Place, place

FeaturesOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Cached features, repeated or a comma list (default: the paper's three; reproduce: what is there of them)."
    ),
]
FusionOption = Annotated[
    list[str] | None, typer.Option(help="addition (default), concatenation or outer, repeated or a list.")
]
SeedsOption = Annotated[int, typer.Option(help="Runs of each cell, with seeds from 0.")]
MarginalOption = Annotated[str, typer.Option(help="Support of the marginal in training: full, bank or batch.")]
EpochsOption = Annotated[int, typer.Option(help="Epochs of every classifier.")]
LrOption = Annotated[float, typer.Option(help="Learning rate.")]
BatchSizeOption = Annotated[int, typer.Option(help="Segments a batch.")]
HiddenOption = Annotated[int, typer.Option(help="Units of an encoder's hidden layer.")]
DimOption = Annotated[int, typer.Option(help="k, the embedding's width.")]
WeightDecayOption = Annotated[float, typer.Option(help="Weight decay.")]
StoreOption = Annotated[
    list[Place] | None,
    typer.Option(parser=place, metavar="PATH|URL", help="This very store, instead of looking for one; repeatable."),
]


def named_stores(store: list[Place] | None, features: list[str] | None) -> list[Place]:
    """What --store names, each store once, whichever ways its path is written. InputError: --features is given too."""
    if store and features:
        raise InputError("--store and --features exclude each other: a store has its features.\nGive one of them.")
    by_place: dict[Place, Place] = {}
    for path in store or []:
        by_place.setdefault(path.resolve(), path)
    return list(by_place.values())
