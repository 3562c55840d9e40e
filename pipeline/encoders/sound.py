"""Encoders of a whole clip's sound: openSMILE's eGeMAPS functionals, and a speaker embedding."""

import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..media.logmel import SAMPLE_RATE
from . import Weights
from .names import Encoder
from .weights import weights_hash

if TYPE_CHECKING:
    import torch


class Egemaps(Encoder):
    """The 88 functionals of eGeMAPSv02, as openSMILE computes them of a clip's sound."""

    inputs, dimension, segments, libraries = {"audio": "waveform"}, 88, 1, ("opensmile",)
    facts: Mapping[str, Any] = {"feature_set": "eGeMAPSv02", "feature_level": "functionals", "sample_rate": SAMPLE_RATE}

    def __init__(self, features: str, weights: Weights, precision: str = "fp32", device: str = "cpu"):
        import opensmile

        super().__init__(features, weights, precision, device)
        self._smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.Functionals)
        self.spec["opensmile"] = version("opensmile")  # the configuration comes with it

    def encode(self, kind: str, batch: Sequence[np.ndarray]) -> list[np.ndarray | str]:
        """Compute the functionals of each waveform: float32 [1, 88], or why there are none."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Segment too short")
            found = [self._smile.process_signal(waveform, SAMPLE_RATE).to_numpy(np.float32) for waveform in batch]
        return [
            f"too short for openSMILE ({len(waveform) / SAMPLE_RATE:.3f} s)" if np.isnan(values).all() else values
            for waveform, values in zip(batch, found, strict=True)
        ]


class Voice(Encoder):
    """The speaker embedding of a clip: the network and weights of Resemblyzer (Wan et al. 2018; Apache 2.0).

    What is heard is made as loud as Resemblyzer makes it; silences are kept, which it cuts out by another library.
    Parts of 1.6 s, 1.3 a second, each give 256 numbers of length 1; their mean of length 1 is the clip's.
    """

    inputs, dimension, segments, libraries = {"audio": "waveform"}, 256, 1, ("resemblyzer",)
    facts: Mapping[str, Any] = {  # of Resemblyzer's hparams.py
        "mels": 40, "window_ms": 25, "step_ms": 10, "part_steps": 160, "parts_a_second": 1.3, "loudness_db": -30
    }  # fmt: skip

    def __init__(self, features: str, weights: Weights, precision: str = "fp32", device: str = "cpu"):
        import torch

        super().__init__(features, weights, precision, device)
        self.model = torch.nn.ModuleDict(
            {"lstm": torch.nn.LSTM(self.facts["mels"], 256, 3, batch_first=True), "linear": torch.nn.Linear(256, 256)}
        )
        file = Path(find_spec("resemblyzer").origin).with_name("pretrained.pt")  # importing it takes a compiled library
        if not file.is_file():
            raise InputError(f"{features}: resemblyzer has no {file}.\nInstall it again: pip install 'mlemiss[voice]'.")
        state = torch.load(file, map_location="cpu", weights_only=True)["model_state"]
        self.model.load_state_dict({name: state[name] for name in self.model.state_dict()})
        self.model.requires_grad_(False).eval()
        self.spec["weights_hash"] = weights_hash(self.model)

    def encode(self, kind: str, batch: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Compute the embedding of each waveform: float32 [1, 256] of length 1."""
        import torch

        with torch.inference_mode():
            found = [self._parts(torch.from_numpy(self._mels(waveform))).numpy() for waveform in batch]
        means = [parts.mean(0, keepdims=True) for parts in found]
        return [mean / np.linalg.norm(mean) for mean in means]

    def _mels(self, waveform: np.ndarray) -> np.ndarray:
        """Return the mel spectrograms of the parts of a clip: float32 [part, step, mel]."""
        import librosa

        window, hop = (SAMPLE_RATE * self.facts[name] // 1000 for name in ("window_ms", "step_ms"))
        loudness = 20 * np.log10(np.sqrt(np.mean(waveform.astype(np.float64) ** 2)))
        louder = max(self.facts["loudness_db"] - loudness, 0.0)
        size = self.facts["part_steps"]
        step = round(SAMPLE_RATE / self.facts["parts_a_second"] / hop)
        steps = int(np.ceil((len(waveform) + 1) / hop))
        firsts = list(range(0, max(1, steps - size + step + 1), step))
        if len(firsts) > 1 and (len(waveform) - firsts[-1] * hop) / (size * hop) < 0.75:  # too little of the last one
            firsts.pop()
        filled = np.pad(waveform * 10 ** (louder / 20), (0, max((firsts[-1] + size) * hop - len(waveform), 0)))
        mels = librosa.feature.melspectrogram(
            y=filled.astype(np.float32), sr=SAMPLE_RATE, n_fft=window, hop_length=hop, n_mels=self.facts["mels"]
        )
        return np.stack([mels.T[first : first + size] for first in firsts]).astype(np.float32)

    def _parts(self, mels: "torch.Tensor") -> "torch.Tensor":
        import torch

        _, (hidden, _) = self.model["lstm"](mels)
        found = torch.relu(self.model["linear"](hidden[-1]))
        return found / found.norm(dim=1, keepdim=True)
