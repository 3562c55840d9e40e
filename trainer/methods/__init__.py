"""The methods by name: those of this folder, one a file, and those that other packages register.

Another package adds a method by an entry point of the group ``mlemiss.methods`` that names a subclass of
`mlemiss.trainer.method.Method`. A built-in name cannot be taken over.
"""

import importlib
import inspect
import re
from importlib.metadata import entry_points

from ...pipeline.errors import InputError

BUILT_IN = {
    "mle": "mle:MaximumLikelihood",
    "lower-bound": "lower_bound:LowerBound",
    "hgr": "hgr:MaximalCorrelation",
    "zero-padding": "zero_padding:ZeroPadding",
    "ae1": "autoencoders:Autoencoder1",
    "ae2": "autoencoders:Autoencoder2",
    "transformer": "transformer:Transformer",
    "embracenet": "embracenet:EmbraceNet",
    "shaspec": "shaspec:SharedSpecific",
    "simmlm": "simmlm:ModalityExperts",
    "momke": "momke:KnowledgeExperts",
    "flex-moe": "flex_moe:FlexibleExperts",
    "audio-only": "single_modality:AudioOnly",
    "visual-only": "single_modality:VisualOnly",
}
EACH = "only"  # in a grid: `only:NAME` of every modality that a store has
ONLY = re.compile(r"only:[A-Za-z][A-Za-z0-9_]*")  # one modality of any name
ALIASES = {"lb": "lower-bound", "zp": "zero-padding"}


def _registered() -> dict:
    return {point.name: point for point in entry_points(group="mlemiss.methods") if point.name not in BUILT_IN}


def method_names() -> list[str]:
    """Return names in the order of the tables: built-in first. Nothing is imported."""
    return [*BUILT_IN, *sorted(_registered())]


def resolve(name: str) -> str:
    """Return the full name of a method or alias. InputError: an unknown name."""
    name = ALIASES.get(name, name)
    if name not in method_names() and not ONLY.fullmatch(str(name)):
        short = ", ".join(f"{alias} ({full})" for alias, full in ALIASES.items())
        known = f"{', '.join(method_names())}, only:MODALITY"
        raise InputError(f"unknown method {name!r}: expected one of {known}, or for short {short}.")
    return name


def load(name: str) -> type:
    """Import a method's class (and torch). InputError: unknown, or another package's method does not import."""
    name = resolve(name)
    if ONLY.fullmatch(name):
        return importlib.import_module(f"{__name__}.single_modality").only(name.removeprefix("only:"))
    if name in BUILT_IN:
        module, attribute = BUILT_IN[name].split(":")
        return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
    point = _registered()[name]
    try:
        return point.load()
    except Exception as error:  # whatever that package does
        raise InputError(
            f"method {name!r} of the package {point.dist.name if point.dist else '?'} ({point.value}) does not import: "
            f"{type(error).__name__}: {error}.\nRepair or uninstall that package."
        ) from error


def summary(name: str) -> str:
    """Return one line about a method: the first of its class's docstring."""
    return (inspect.getdoc(load(name)) or "").split("\n")[0]
