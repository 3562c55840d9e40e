"""Load any encoder by its name, once a process."""

from functools import lru_cache

from . import Weights
from .images import Backbone
from .names import Encoder, is_encoder_class, plugin_of


@lru_cache(maxsize=8)
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
    if features.startswith("hf:"):
        from .hub import Transformer as Kind
    elif features in ("egemaps", "voice"):
        from . import sound

        Kind = {"egemaps": sound.Egemaps, "voice": sound.Voice}[features]
    else:
        plugin = plugin_of(features)
        Kind = plugin if is_encoder_class(plugin) else Backbone
    return Kind(features, weights, precision, device)
