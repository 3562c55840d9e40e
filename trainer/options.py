"""Options that `train` and `reproduce` share. Imports nothing heavy."""

from typing import TYPE_CHECKING, Annotated

import typer

from ..pipeline.errors import InputError
from ..pipeline.stores.remote import Place, place
from .settings import Settings

if TYPE_CHECKING:
    from .end_to_end.end_to_end import EndToEnd

EndToEndOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Train this backbone too, on the frames and log-Mels of a media store."),
]
InitOption = Annotated[
    str | None, typer.Option(metavar="imagenet|random|FILE", help="Its weights at first (default: imagenet).")
]
FrozenOption = Annotated[bool, typer.Option("--frozen", help="Do not train the backbone.")]
AugmentOption = Annotated[
    bool, typer.Option("--augment", help="Change frames (flip, crop, colour) and spectrograms (masks) in training.")
]
BackboneLrOption = Annotated[float | None, typer.Option(help="Learning rate of the backbone (default: 1e-4).")]
MicroBatchOption = Annotated[
    int | None, typer.Option(help="Segments at once on the device, of a larger batch (default: 64).")
]
PrecisionOption = Annotated[
    str | None, typer.Option(metavar="fp32|bf16", help="Of the backbone: bf16 is mixed (default: fp32).")
]
CompileOption = Annotated[
    bool, typer.Option("--compile", help="Compile the backbone first, which takes minutes and may pay on a GPU.")
]
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
BatchSizeOption = Annotated[
    int | None, typer.Option(help="Segments a batch (default: 256; of a trained backbone --micro-batch).")
]
HiddenOption = Annotated[int, typer.Option(help="Units of an encoder's hidden layer.")]
DimOption = Annotated[int, typer.Option(help="k, the embedding's width.")]
WeightDecayOption = Annotated[float, typer.Option(help="Weight decay.")]
StoreOption = Annotated[
    list[Place] | None,
    typer.Option(parser=place, metavar="PATH|URL", help="This very store, instead of looking for one; repeatable."),
]


def end_to_end_of(backbone: str | None, init: str | None, **given) -> "EndToEnd | None":
    """What --end-to-end and the options that belong to it say; None where it is not given.

    InputError: an option that belongs to it without it, or a wrong value.
    """
    given = {name: value for name, value in given.items() if value is not None and value is not False}
    if backbone is None:
        if stray := [*(["init"] if init else []), *given]:
            option = stray[0].replace("_", "-").replace("compiled", "compile")
            raise InputError(f"--{option} belongs to training end to end.\nName a backbone with --end-to-end.")
        return None
    from ..pipeline.encoders.images import parse_weights, resolve_tag
    from .end_to_end.end_to_end import EndToEnd

    resolve_tag(backbone)
    return EndToEnd(backbone, parse_weights([init or "imagenet"], [backbone])[backbone], **given)


def batch_size_of(given: int | None, trunk: "EndToEnd | None") -> int:
    """--batch-size, or its default; a backbone's is what goes through it at once, so that nothing is made again."""
    if given is not None:
        return given
    return trunk.micro_batch if trunk and not trunk.frozen else Settings.batch_size


def named_stores(store: list[Place] | None, features: list[str] | None) -> list[Place]:
    """What --store names, each store once, whichever ways its path is written. InputError: --features is given too."""
    if store and features:
        raise InputError("--store and --features exclude each other: a store has its features.\nGive one of them.")
    by_place: dict[Place, Place] = {}
    for path in store or []:
        by_place.setdefault(path.resolve(), path)
    return list(by_place.values())
