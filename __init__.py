"""Multimodal learning with missing modalities.

In Python: `open_store`, `train` with its `Results`, and the scikit-learn estimator `MissingModalityClassifier`; see
docs/python.md. What they need is imported when they are first used.
"""

from importlib import import_module

_ROOMS = {
    "InputError": "pipeline.errors",
    "MissingModalityClassifier": "trainer.door.estimator",
    "Results": "trainer.door.training",
    "open_store": "pipeline.stores.catalogue",
    "train": "trainer.door.training",
}
__all__ = [*_ROOMS]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("mlemiss")
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_ROOMS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS, "__version__"})
