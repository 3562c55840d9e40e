"""Options of the trainer's verbs, and the one place where hyper-parameters become options."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..pipeline.errors import InputError
from ..pipeline.stores.remote import Place, parse_place
from .settings import Marginal, Settings

if TYPE_CHECKING:
    from ..pipeline.stores.store import FeatureStore
    from .end_to_end.end_to_end import EndToEnd
    from .experiments.tuned import Tuned

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
    Literal["fp32", "tf32", "bf16"] | None,
    typer.Option(help="Of the backbone: bf16 is mixed, tf32 of CUDA GPUs (default: fp32)."),
]
CompileOption = Annotated[
    bool, typer.Option("--compile", help="Compile the backbone first, which takes minutes and may pay on a GPU.")
]
FeaturesOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Cached features, repeated or a comma list (default: the paper's three; reproduce: what is there of them);"
        " or of each modality its own: visual=A,audio=B, with alternatives visual=A|B."
    ),
]
FusionOption = Annotated[
    list[str] | None, typer.Option(help="addition (default), concatenation or outer, repeated or a list.")
]
SeedsOption = Annotated[int, typer.Option(help="Runs of each cell, with seeds from 0.")]
HYPER = {  # an option for each hyper-parameter of `Settings` that a command line names, in the order of --help
    "marginal": Annotated[Marginal, typer.Option(help="Support of the marginal in training.")],
    "epochs": Annotated[int, typer.Option(help="Epochs of every classifier.")],
    "lr": Annotated[float, typer.Option(help="Learning rate.")],
    "batch_size": Annotated[
        int | None, typer.Option(help="Segments a batch (default: 256; of a trained backbone --micro-batch).")
    ],
    "hidden": Annotated[int, typer.Option(help="Units of an encoder's hidden layer.")],
    "dim": Annotated[int, typer.Option(help="k, the embedding's width.")],
    "weight_decay": Annotated[float, typer.Option(help="Weight decay.")],
    "dropout": Annotated[float, typer.Option(help="Share of hidden units that a training step leaves out.")],
    "hide": Annotated[float, typer.Option(help="Share of complete rows of which a step hides one modality.")],
    "complete_share": Annotated[
        float | None, typer.Option(help="Complete clips' share of the loss (default: every row counts alike).")
    ],
    "clamp": Annotated[float, typer.Option(help="Most deviations from the mean that an input may be away; 0: any.")],
}
StoreOption = Annotated[
    list[Place] | None,
    typer.Option(
        parser=parse_place, metavar="PATH|URL", help="This very store, instead of looking for one; repeatable."
    ),
]
MethodOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Methods (`list methods`), repeated or a list; only: each modality alone "
        "(default: mle,only; end to end mle)."
    ),
]
MissingOption = Annotated[
    list[str],
    typer.Option(
        help="What training lacks: audio:0.5, audio:0.3+visual:0.3, label:0.5, none, of any modality; "
        "audio:0.8@label=angry of clips with a value; repeated or a list."
    ),
]
MissingTestOption = Annotated[
    list[str] | None,
    typer.Option(
        help="What validation and test clips lack (default: none); further ones, repeated or a list, are more tests of "
        "each training."
    ),
]
SplitOption = Annotated[str, typer.Option(help="clip, or a column whose equal values stay together.")]
SplitsOption = Annotated[Path | None, typer.Option(help="Somebody else's splits, a CSV of `store masks`.")]
MasksOption = Annotated[
    Path | None, typer.Option(help="Somebody else's masks: --missing then names settings of this CSV.")
]
SpaceOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=RANGE", help="A setting is drawn from: lr=1e-4..1e-2, hidden=64|128, dropout=0; repeatable."
    ),
]
TunedOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Settings that a `tune` into this folder chose for each row.")
]
SaveWeightsOption = Annotated[bool, typer.Option("--save-weights", help="Keep what was trained, for predict.")]
ExhibitArgument = Annotated[
    str, typer.Argument(metavar="table1|table2|figure4|figure5|figure6", help="What of the paper to reproduce.")
]
ExhibitSplitOption = Annotated[
    list[str] | None,
    typer.Option(help="clip or a column, repeated or a list (default: clip,subject; end to end clip)."),
]
SingleOption = Annotated[
    bool | None,
    typer.Option(
        "--single/--no-single", help="Each modality alone, too (default: for cached features of another dataset)."
    ),
]
BudgetOption = Annotated[
    float | None, typer.Option(help="Hours: train seed by seed until the time is up; run again to go on.")
]


class Hyper(dict):
    """Hyper-parameters by name; ``named`` are those that the command line gives."""

    named: Sequence[str] = ()


def with_settings(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command the options of HYPER in place of its parameter ``hyper``, which gets their values by name."""
    places = {name: getattr(Settings, name) for name in HYPER} | {"batch_size": None}
    parameters = [inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)]
    for one in inspect.signature(command).parameters.values():
        options = [one.replace(name=n, default=v, annotation=HYPER[n]) for n, v in places.items()]
        parameters += options if one.name == "hyper" else [one]

    @wraps(command)
    def run(context: typer.Context, **given: object) -> int:
        hyper = Hyper({name: given.pop(name) for name in HYPER})
        hyper.named = [name for name in HYPER if context.get_parameter_source(name).name == "COMMANDLINE"]
        return command(hyper=hyper, **given)

    run.__signature__ = inspect.Signature(parameters)
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def end_to_end_from(backbone: str | None, init: str | None, **given) -> "EndToEnd | None":
    """Return what --end-to-end and the options that belong to it say; None where it is not given.

    InputError: an option that belongs to it without it, or a wrong value.
    """
    given = {name: value for name, value in given.items() if value is not None and value is not False}
    if backbone is None:
        if stray := [*(["init"] if init else []), *given]:
            option = stray[0].replace("_", "-").replace("compiled", "compile")
            raise InputError(f"--{option} belongs to training end to end.\nName a backbone with --end-to-end.")
        return None
    from ..pipeline.encoders import parse_weights
    from ..pipeline.encoders.names import resolve_tag
    from .end_to_end.end_to_end import EndToEnd

    resolve_tag(backbone)
    return EndToEnd(backbone, parse_weights([init or "imagenet"], [backbone])[backbone], **given)


def chosen_settings(tuned: Path | None, hyper: Hyper, trunk: "EndToEnd | None") -> "Settings | Tuned":
    """Return the options' settings, or what --tuned chose. InputError: both are given, or a backbone is trained too."""
    settings = settings_from(hyper, trunk)
    if tuned is None:
        return settings
    if trunk:
        raise InputError("--tuned and --end-to-end exclude each other: tuning is on cached features.")
    if hyper.named:
        own = ", ".join(f"--{name.replace('_', '-')}" for name in hyper.named)
        raise InputError(f"--tuned and settings of your own exclude each other.\nLeave out {own}, or --tuned.")
    from .experiments.tuned import Tuned

    return Tuned(tuned)


def settings_from(hyper: Mapping, trunk: "EndToEnd | None" = None) -> Settings:
    """Return the options' settings; by default a trained backbone's batch is one micro-batch: nothing twice."""
    size = trunk.micro_batch if trunk and not trunk.frozen else Settings.batch_size
    return Settings(**hyper | ({"batch_size": size} if hyper["batch_size"] is None else {}))


def named_stores(store: list[Place] | None, features: list[str] | None) -> list[Place]:
    """Return the stores of --store, each once, however its path is written. InputError: --features is given too."""
    if store and features:
        raise InputError("--store and --features exclude each other: a store has its features.\nGive one of them.")
    by_place: dict[Place, Place] = {}
    for path in store or []:
        by_place.setdefault(path.resolve(), path)
    return list(by_place.values())


def find_stores(
    store: list[Place] | None, features: list[str] | None, folder: Place, dataset: str | None
) -> "list[FeatureStore]":
    """Open the stores of --store, or those in a folder of these features, the paper's by default.

    InputError: a text that asks for no features, no or several stores fit, or one that cannot be opened.
    """
    from ..pipeline.encoders.names import DEFAULT
    from ..pipeline.stores.catalogue import open_features, open_store, parse_features

    if store:
        return list(map(open_store, named_stores(store, features)))
    return [open_features(one, folder, dataset) for one in parse_features(features or list(DEFAULT))]
