"""Transformers of waveforms and text, as `transformers` loads them: from a folder, or from the hub's cache.

A waveform is heard whole, in pieces of at most 10 s; the steps of the chosen layers are averaged within each segment's
half second. A text gives the mean over its tokens. Code that comes with a model is never run.
"""

import contextlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..console import name_some
from ..errors import InputError, is_machine_fault, out_of_memory
from ..media.decode import SEGMENT_SECONDS, segment_starts
from ..media.logmel import SAMPLE_RATE
from . import Weights, check_precision, round_products
from .names import Encoder, split_layers
from .weights import PREPARING, RANDOM_SEED, check_finite, describing_files, hub_folder, weights_hash

if TYPE_CHECKING:
    import torch

PIECE_SECONDS = 10.0  # of a waveform at once, at most
RESAMPLER = "soxr_hq"
GPU_PIECES = 16  # at once on a GPU, of similar length
BUCKET_SECONDS = 0.5  # such pieces are filled up to a multiple of it,
MARGIN_SECONDS = 0.04  # by so much at least: then every piece has a mask, whatever it is computed with
MOST_TOKENS = 512  # of a text, where the model does not say
DESCRIBING = {  # files of a model's folder that its features depend on, beside the weights
    "waveform": ("config.json", "*processor_config.json"),
    "text": (
        "config.json",
        "tokenizer*",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab*",
        "merges.txt",
        "*.model",
    ),
}
UNUSED = ("masked_spec_embed", "pooler.")  # tensors that no hidden state depends on; checkpoints often lack them
# What the library raises at a folder that is not what it expects.
LOADING_ERRORS = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ImportError)


class Transformer(Encoder):
    """A transformer; the hidden states of its chosen layers are the features (`hf:NAME_OR_FOLDER@LAYERS`).

    Args:
        features: its name.
        weights: with the folder that it lies in, unless it is on the hub; `random` for random weights.
        precision: fp32, tf32 or bf16.
        device: cpu, cuda, cuda:N or mps.

    Raises:
        InputError: no model, or one of neither sound nor text; weights that lack tensors; no such layer.
    """

    libraries = ("transformers", "tokenizers")

    def __init__(self, features: str, weights: Weights, precision: str = "fp32", device: str = "cpu"):
        import torch

        super().__init__(features, weights, precision, device)
        check_precision(precision, device)
        source, layers = split_layers(features)
        folder = Path(weights.file) if weights.file else hub_folder(source, features)
        with _quiet():
            config = _loaded("AutoConfig", folder, features)
            self.kind, self.processor = _processor(folder, features)
            model = _model(folder, features, config, weights.name == "random")
        described = describing_files(folder, DESCRIBING[self.kind])
        self.spec |= {"model": type(model).__name__, "weights_hash": weights_hash(model, described)}
        self.precision, self.device = precision, device
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.model = model.to(device, self.dtype)
        self.spec |= {"precision": precision, "device": device.partition(":")[0]}
        self._describe(features)
        self.layers: Sequence[int] = (-1,)
        probe = self._probe(features, 1)
        self.layers, self.dimension = _chosen(layers, len(probe), features), probe[0].shape[-1]
        self.spec["layers"] = list(self.layers)
        self._check_steps(features, [probe[layer].shape[1] for layer in self.layers])

    def _describe(self, features: str) -> None:
        """Set what the model is computed from, and how."""
        self.rate = int(self.processor.sampling_rate) if self.kind == "waveform" else 0  # Hz
        if not self.rate:
            self.inputs, self.segments = {"text": "text"}, 1
            positions = getattr(self.model.config, "max_position_embeddings", None) or -1
            positions = MOST_TOKENS if positions < 0 else positions  # XLNet says -1
            self.most_tokens = min(self.processor.model_max_length, positions - _unused_positions(self.model))
            self.spec |= {"most_tokens": self.most_tokens, "long_text": "pieces"}
            return
        self.inputs = {"audio": "waveform"}
        self.span = getattr(self.processor, "n_samples", 0)  # Whisper's: every piece is filled up to so many samples
        self.plain = type(self.processor).__name__ == "Wav2Vec2FeatureExtractor"  # the model gets samples, normalised
        config = self.model.config
        # A norm over the whole piece sees what fills it up, whatever the mask; an adapter shortens some layers alone.
        alone = getattr(config, "feat_extract_norm", "") == "group" or getattr(config, "add_adapter", False)
        masked = self.plain and bool(self.processor.return_attention_mask) and not alone
        self.several = masked or self.span > 0  # whether pieces of several lengths can be computed together
        self.batch = GPU_PIECES if self.several and self.device.startswith("cuda") else 1
        self.spec |= {"sample_rate": self.rate, "piece_seconds": PIECE_SECONDS, "batch": self.batch}
        if self.rate != SAMPLE_RATE:
            self.spec["resampler"] = RESAMPLER
            self.notes.append(f"{features} hears {self.rate} Hz: the sound of {SAMPLE_RATE} Hz is resampled for it")

    def encode(self, kind: str, batch: Sequence[Any]) -> list[np.ndarray]:
        """Compute the features of several clips: of a `waveform` float32 [30, D], of a `text` [1, D]."""
        round_products(self.precision == "tf32")
        return [self._read(text) for text in batch] if kind == "text" else self._hear(batch)

    def _probe(self, features: str, seconds: int) -> "Sequence[torch.Tensor]":
        """Return the hidden states of so much silence, or of a word. InputError: the model has none."""
        try:
            silence = np.zeros(seconds * self.rate, np.float32)
            inputs = self._sound([silence]) if self.rate else self._tokens("a")[0][0]
            return list(self._states(inputs))
        except LOADING_ERRORS as error:
            if out_of_memory(error):
                raise
            raise InputError(
                f"{features}: {type(self.model).__name__} gives no hidden states of {self.kind} alone "
                f"({type(error).__name__}: {str(error)[:200]}).\nName a model of sound or of text."
            ) from None

    def _check_steps(self, features: str, steps: Sequence[int]) -> None:
        """Check that a model of sound has steps in time, and as many in each chosen layer. InputError: it has not."""
        kind = type(self.model).__name__
        if len(set(steps)) > 1:
            raise InputError(
                f"{features}: layers {', '.join(map(str, self.layers))} of {kind} have "
                f"{', '.join(map(str, steps))} steps of the same input, and cannot be added up.\nName fewer layers."
            )
        if self.rate and not self.span:
            longer = self._probe(features, 2)[self.layers[0]].shape[1]
            if not 1.7 < longer / steps[0] < 2.3:
                raise InputError(
                    f"{features}: {kind} has {steps[0]} states for 1 s of sound and {longer} for 2 s: they are no "
                    "steps in time.\nName a model of the waveform (HuBERT, WavLM, wav2vec 2.0) or Whisper."
                )

    def _states(self, inputs: dict[str, "torch.Tensor"]) -> "Sequence[torch.Tensor]":
        """Return the hidden states [row, step, D] of every layer, those before the first layer included."""
        import torch

        inputs = {name: x.to(self.device, self.dtype if x.is_floating_point() else None) for name, x in inputs.items()}
        with torch.inference_mode():
            found = self.model(**inputs, output_hidden_states=True)
        return [*found.hidden_states[:-1], found.last_hidden_state]  # versions differ in whether the last is normalised

    def _hidden(self, inputs: dict[str, "torch.Tensor"]) -> np.ndarray:
        """Return the sum of the chosen layers, float32 [row, step, D]."""
        states = self._states(inputs)
        return sum(states[layer].float() for layer in self.layers).cpu().numpy()

    # ---- text ----

    def _tokens(self, text: str) -> list[tuple[dict[str, "torch.Tensor"], np.ndarray]]:
        """Return the model's inputs of each piece of a text, and which of its tokens are words, bool [token].

        A tokenizer written in Python gives the first piece alone.
        """
        import torch

        several = self.processor.is_fast
        options = {"truncation": True, "max_length": self.most_tokens, "return_overflowing_tokens": several}
        found = self.processor(text, **options, return_special_tokens_mask=True)
        names = [name for name in self.processor.model_input_names if name in found]
        pieces = []
        for i in range(len(found["input_ids"]) if several else 1):
            inputs, special = (
                {name: found[name][i] if several else found[name] for name in of}
                for of in (names, ["special_tokens_mask"])
            )
            words = np.array(special["special_tokens_mask"]) == 0
            pieces.append(({name: torch.tensor([row]) for name, row in inputs.items()}, words))
        return pieces

    def _read(self, text: str) -> np.ndarray:
        pieces = [(self._hidden(inputs)[0], words) for inputs, words in self._tokens(text)]
        states, words = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
        return states[words if words.any() else slice(None)].mean(0, keepdims=True)

    # ---- sound ----

    def _hear(self, waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
        pieces = [list(self._pieces(waveform)) for waveform in waveforms]
        steps = iter(self._steps([piece for several in pieces for _, piece in several]))
        found = []
        for waveform, several in zip(waveforms, pieces, strict=True):
            values, times = [], []
            for first, _ in several:
                states, samples = next(steps)
                values.append(states)
                times.append((first + (np.arange(len(states)) + 0.5) * samples) / self.rate)
            duration = len(waveform) / SAMPLE_RATE
            found.append(mean_by_segment(np.concatenate(values), np.concatenate(times), duration))
        return found

    def _pieces(self, waveform: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yield pieces of equal length, at most 10 s, each with its first sample's position.

        A piece that no segment touches is left out: its steps would count nowhere.
        """
        duration = len(waveform) / SAMPLE_RATE
        starts = segment_starts(duration)
        if self.rate != SAMPLE_RATE:
            import librosa

            waveform = librosa.resample(waveform, orig_sr=SAMPLE_RATE, target_sr=self.rate, res_type=RESAMPLER)
        if self.plain:  # normalised as a whole
            waveform = self.processor(waveform, sampling_rate=self.rate, return_tensors="np")["input_values"][0]
        count = max(int(np.ceil(duration / PIECE_SECONDS)), 1)
        bounds = np.linspace(0, len(waveform), count + 1).round().astype(int)
        least = round(SEGMENT_SECONDS * self.rate)
        for first, last in pairwise(bounds):
            if ((starts < last / self.rate) & (starts + SEGMENT_SECONDS > first / self.rate)).any():
                piece = waveform[first:last]
                yield int(first), np.pad(piece, (0, max(least - len(piece), 0)))

    def _steps(self, pieces: Sequence[np.ndarray]) -> list[tuple[np.ndarray, float]]:
        """Return the hidden states at the steps of each piece, float32 [step, D], and the samples that a step spans."""
        found: list[Any] = [None] * len(pieces)
        for rows in self._batches(pieces):
            several = [pieces[i] for i in rows]
            states = self._hidden(self._sound(several + several[-1:] * (self.batch - len(several))))
            for row, i in zip(states, rows, strict=False):
                size, span, steps = len(pieces[i]), self.span or len(pieces[i]), len(row)
                if self.span:
                    steps = -(-steps * size // span)
                elif self.batch > 1:
                    steps = int(self.model._get_feat_extract_output_lengths(size))
                found[i] = row[:steps], span / (len(row) if self.span else steps)
        return found

    def _batches(self, pieces: Sequence[np.ndarray]) -> Iterator[list[int]]:
        """Yield which pieces are computed together: each alone, but on a GPU those of similar length."""
        lengths: dict[int, list[int]] = {}
        for i, piece in enumerate(pieces):
            lengths.setdefault(0 if self.span else self._filled(len(piece)), []).append(i)
        for _, several in sorted(lengths.items()):
            for first in range(0, len(several), self.batch):
                yield several[first : first + self.batch]

    def _filled(self, samples: int) -> int:
        """Return the samples that a piece is filled up to, so that pieces of similar length make one batch.

        It depends on the piece alone, as does the number of rows, so that a clip's bytes do not depend on the others.
        """
        if self.batch == 1:
            return samples
        bucket, margin = round(BUCKET_SECONDS * self.rate), round(MARGIN_SECONDS * self.rate)
        return -(-(samples + margin) // bucket) * bucket

    def _sound(self, pieces: Sequence[np.ndarray]) -> dict[str, "torch.Tensor"]:
        """Return the model's input for pieces that make one batch."""
        import torch

        if not self.plain:
            return dict(self.processor(list(pieces), sampling_rate=self.rate, return_tensors="pt"))
        size = self._filled(len(pieces[0]))
        filled = np.stack([np.pad(piece, (0, size - len(piece))) for piece in pieces])
        inputs = {"input_values": torch.from_numpy(filled)}
        if self.batch > 1:
            mask = np.stack([np.arange(size) < len(piece) for piece in pieces])
            inputs["attention_mask"] = torch.from_numpy(mask.astype(np.int64))
        return inputs


def _unused_positions(model: "torch.nn.Module") -> int:
    """Return how many of a model's positions no token has: RoBERTa's count from behind the padding's."""
    found = (one.padding_idx for name, one in model.named_modules() if name.endswith("position_embeddings"))
    return max((0 if padding is None else padding + 1 for padding in found), default=0)


def mean_by_segment(values: np.ndarray, times: np.ndarray, duration: float) -> np.ndarray:
    """Average steps within the half second of each segment; where no step falls into it, take the nearest one.

    Args:
        values: float32 [step, D].
        times: float64 [step], the middle of each step in seconds.
        duration: of the clip, in seconds.

    Returns:
        float32 [30, D].
    """
    rows = []
    for start in segment_starts(duration):
        inside = (times >= start) & (times < start + SEGMENT_SECONDS)
        nearest = np.abs(times - start - SEGMENT_SECONDS / 2).argmin()
        rows.append(values[inside].mean(0) if inside.any() else values[nearest])
    return np.stack(rows)


# ---- loading ----


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the library's remarks on a model: what matters of them is checked here."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _part(kind: str, folder: Path, **options: Any) -> tuple[Any, str]:
    """Load a part of a model from its folder alone; return it, or None and why the library cannot."""
    import transformers

    try:
        return getattr(transformers, kind).from_pretrained(folder, local_files_only=True, **options), ""
    except Exception as error:  # whatever a file of unknown origin makes the library raise
        if is_machine_fault(error) and not isinstance(error, ImportError):  # of a library that a part needs
            raise
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        return None, f"transformers cannot load it: {said.rstrip('.')}"


def _loaded(kind: str, folder: Path, features: str, **options: Any) -> Any:
    """Load a part of a model as `_part` does. InputError: there is none that the library can load."""
    found, why = _part(kind, folder, **options)
    if not why:
        return found
    if kind == "AutoConfig" and not (folder / "config.json").is_file():
        why = f"it has no config.json (found {name_some(sorted(p.name for p in folder.iterdir())) or 'nothing'})"
    hint = f" Random weights: --weights {features}=random." if kind == "AutoModel" else ""
    raise InputError(
        f"{features}: the folder {folder} is no model: {why}.\n"
        f"Expected what `save_pretrained` writes: config.json, weights, and the processor of sound or text.{hint}"
    )


def _processor(folder: Path, features: str) -> tuple[str, Any]:
    """Return what the model is computed from, waveform or text, and the processor that prepares it."""
    told = ""
    for (kind, patterns), source in zip(PREPARING.items(), ("waveform", "text"), strict=True):
        processor, why = _part(kind, folder)
        if not why and (source == "text" or getattr(processor, "sampling_rate", None)):
            return source, processor
        if why and any(any(folder.glob(pattern)) for pattern in patterns):
            told = f": {why}"
    libraries = " A *.model needs sentencepiece and protobuf: pip install 'mlemiss[encoders]'."
    raise InputError(
        f"{features}: the folder {folder} has no processor of sound or text{told}.\n"
        "Expected preprocessor_config.json with a sampling_rate, or a tokenizer. Networks of pictures are timm:NAME."
        f"{libraries if any(folder.glob('*.model')) else ''}"
    )


def _model(folder: Path, features: str, config: Any, random: bool) -> Any:
    """Return the model in evaluation mode; of one that writes sequences, the encoder.

    InputError: it cannot be loaded; its weights lack tensors, or are not finite.
    """
    import torch
    import transformers

    if random:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_SEED)
            model, absent = transformers.AutoModel.from_config(config, dtype=torch.float32), set()
    else:
        options = {"config": config, "dtype": torch.float32, "output_loading_info": True}
        model, info = _loaded("AutoModel", folder, features, **options)
        absent = set(info["missing_keys"])
    if lacking := sorted(name for name in absent if not name.startswith(UNUSED)):
        raise InputError(
            f"{features}: the weights in {folder} lack {name_some(lacking)} of {type(model).__name__}.\n"
            "Features of random numbers would come of it: copy the whole model."
        )
    for name, tensor in model.state_dict().items():
        if name in absent:
            tensor.zero_()  # initialised at random, and not used
    model = model.get_encoder() if config.is_encoder_decoder else model
    check_finite(model, f"{features}: the weights in {folder}")
    return model.requires_grad_(False).eval()


def _chosen(layers: str, count: int, features: str) -> tuple[int, ...]:
    """Return the positions of the layers, 0 before the first. InputError: the model has no such layer."""
    numbers = [int(number) for number in layers.removesuffix(":").split("+")]
    for number in numbers:
        if not -count <= number < count:
            raise InputError(
                f"features {features!r}: the model has no layer {number}.\n"
                f"Expected 0 (before the first) to {count - 1}, or {-count} to -1 from the end."
            )
    places = tuple(number % count for number in numbers)
    return tuple(range(places[0], count)) if layers.endswith(":") else places
