"""Load any encoder by its name, once a process unless its files change."""

from functools import lru_cache
from pathlib import Path

from . import Weights
from .images import Backbone
from .names import Encoder, is_encoder_class, plugin_of


def load_encoder(features: str, weights: Weights, precision: str = "fp32", device: str = "cpu") -> Encoder:
    """Return an encoder with its weights.

    Args:
        features: its name, as `known_features` gives it.
        weights: where its weights come from.
        precision: fp32, tf32 or bf16, of networks of pictures and transformers.
        device: cpu, cuda, cuda:N or mps.

    Raises:
        InputError: weights that cannot be had or do not fit; a layer that does not exist; another precision or device.
    """
    return _load(features, weights, precision, device, _files_of(weights))


def _files_of(weights: Weights) -> tuple[tuple[str, int, int], ...]:
    """Return name, size and time of change of the files that weights lie in; none of the hub's, which never change."""
    if weights.file is None:
        return ()
    path = Path(weights.file)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    states = [(file.name, file.stat()) for file in files if file.is_file()]
    return tuple((name, state.st_size, state.st_mtime_ns) for name, state in states)


@lru_cache(maxsize=8)
def _load(features: str, weights: Weights, precision: str, device: str, files: tuple) -> Encoder:
    """Load an encoder; other ``files`` under its path are another encoder."""
    if features.startswith("hf:"):
        from .hub import Transformer as Kind
    elif features in ("egemaps", "voice"):
        from . import sound

        Kind = {"egemaps": sound.Egemaps, "voice": sound.Voice}[features]
    else:
        plugin = plugin_of(features)
        Kind = plugin if is_encoder_class(plugin) else Backbone
    return Kind(features, weights, precision, device)
