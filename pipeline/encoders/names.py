"""The names of encoders: what they are computed from, and what each needs beside mlemiss.

`vgg16`, `resnet34` and `resnet50` are the paper's, with torchvision's ImageNet weights under their full timm tags;
`timm:NAME` is any other timm model (`images`). `hf:…` is a transformer of waveforms or text (`hub`), `egemaps` and
`voice` hear waveforms (`sound`).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import InputError

# name -> (full timm tag, one line). The bare name `resnet50` hides some 18 sets of weights, so tags are pinned.
BACKBONES = {
    "vgg16": ("vgg16.tv_in1k", "VGG-16 without its classifier, 4096 features (Simonyan & Zisserman 2015)"),
    "resnet34": ("resnet34.tv_in1k", "ResNet-34, global average pool, 512 features (He et al. 2016)"),
    "resnet50": ("resnet50.tv_in1k", "ResNet-50, global average pool, 2048 features (He et al. 2016)"),
}
DEFAULT = ("vgg16", "resnet34", "resnet50")
WIDTHS = {"vgg16": "4096", "resnet34": "512", "resnet50": "2048"}
INPUTS = {"frames": "visual", "logmel": "audio", "waveform": "audio", "text": "text"}  # input -> the modality it is of
PICTURES: Mapping[str, str] = {"visual": "frames", "audio": "logmel"}  # modality -> input, of networks of pictures
SEGMENTS = 30  # of a clip
LIBRARIES = {"hf:": "transformers", "egemaps": "opensmile", "voice": "resemblyzer"}
EXTRAS = {"transformers": "encoders", "opensmile": "egemaps", "resemblyzer": "voice"}  # library -> mlemiss's extra
MODALITY_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
LAYERS = re.compile(r"-?\d+(\+-?\d+)*|-?\d+:")  # 4, -4, 4+5, -4:

Channels = tuple[float, float, float]  # of a picture in [0, 1]: red, green, blue; of a log-Mel image level and deltas


@dataclass(frozen=True)
class Weights:
    """Where an encoder's weights come from, and what pictures they were trained on.

    ``name`` is `imagenet`, `random`, the file's name, or the encoder's own; ``file`` a file, or the folder of `hf:`.
    """

    name: str
    file: str | None = None
    mean: Channels | None = None  # subtracted from pictures, which are divided by the deviation then;
    std: Channels | None = None  # None: what timm says of the tag


class Encoder:
    """What turns clips into features: the base of all encoders, plug-ins included.

    Attributes:
        inputs: what each modality is computed from: frames, logmel, waveform or text.
        dimension: number of features.
        segments: 30, or 1 where a whole clip gives one row.
        libraries: distributions whose versions are recorded with the features, beside mlemiss's own.
        facts: plain values that determine the features, for `spec`.
        spec: all that determines the features, as plain values for fingerprints and a store's attributes.
        notes: what a user may want to know, as text.
    """

    inputs: Mapping[str, str] = {}
    dimension: int = 0
    segments: int = SEGMENTS
    libraries: tuple[str, ...] = ()
    facts: Mapping[str, Any] = {}

    def __init__(self, features: str, weights: Weights, precision: str = "fp32", device: str = "cpu"):
        self.spec: dict[str, Any] = {"features": features, "weights_hash": ""} | dict(self.facts)
        self.notes: list[str] = []

    def encode(self, kind: str, batch: Sequence[Any]) -> list[Any]:
        """Compute the features of several clips.

        Args:
            kind: one of the inputs: `frames`, uint8 [30, 256, 256, 3]; `logmel`, float16 [30, 3, 64, 51] in dB;
                `waveform`, float32 [samples], mono, 16 kHz; `text`, a str.
            batch: this input of each clip.

        Returns:
            For each clip an array [segments, dimension], or in words why it has none: then it lacks the modality. What
            float16 cannot hold makes the clip a failed one.
        """
        raise NotImplementedError


# ---- names ----


def listed_encoders() -> dict[str, dict[str, str]]:
    """Return a row for each encoder, plug-ins of the group `mlemiss.features` included: summary, inputs, width, extra.

    ``extra`` is what to install of mlemiss beside itself (`pip install 'mlemiss[EXTRA]'`), or nothing.
    """

    def row(summary: str, inputs: str, width: str, library: str = "") -> dict[str, str]:
        return {"summary": summary, "inputs": inputs, "width": width, "extra": EXTRAS.get(library, "")}

    pictures = "frames, log-Mels"
    rows = {name: row(summary, pictures, WIDTHS[name]) for name, (_, summary) in BACKBONES.items()}
    any_network = "any network of timm with its own size, mean, deviation and pooling: CLIP, DINOv2, EVA-02 by tag"
    rows["timm:NAME"] = row(any_network, pictures, "the network's")
    transformer = "any transformer of sound or text, a folder or a name on the hub; LAYERS such as -4, 4+5 or -4: (sum)"
    rows["hf:NAME_OR_FOLDER[@LAYERS]"] = row(transformer, "waveform or text", "the model's", "transformers")
    rows["egemaps"] = row(
        "openSMILE's eGeMAPSv02 functionals of a clip (Eyben et al. 2016)", "waveform", "88", "opensmile"
    )
    rows["voice"] = row(
        "speaker embedding of a clip, Resemblyzer's weights (Wan et al. 2018)", "waveform", "256", "resemblyzer"
    )
    for name, plugin in _plugins().items():
        rows[name] = row(f"plug-in {plugin.value}", *_described(plugin))
    return rows


def _described(plugin: EntryPoint) -> tuple[str, str]:
    """Return the inputs and the width of a plug-in."""
    try:
        value = plugin.load()
    except Exception as error:  # whatever its author's code does
        return f"cannot be loaded ({type(error).__name__})", ""
    if isinstance(value, str):
        return "frames, log-Mels", "the network's"
    if not is_encoder_class(value):
        return f"cannot be used (a {type(value).__name__}, neither a timm tag nor an Encoder)", ""
    return ", ".join(value.inputs.values()), str(value.dimension or "its own")


def _plugins() -> dict[str, EntryPoint]:
    return {plugin.name: plugin for plugin in entry_points(group="mlemiss.features")}


def is_encoder(features: str) -> bool:
    """Return whether `preprocess` can make these features; others are imported."""
    return features in {*BACKBONES, *LIBRARIES, *_plugins()} or features.startswith(("timm:", "hf:"))


def plugin_of(features: str) -> Any:
    """Return what the entry point of a name holds, a timm tag or a class of `Encoder`; None: there is no such name."""
    plugin = _plugins().get(features)
    return plugin.load() if plugin and features not in BACKBONES else None


def list_requests(texts: Sequence[str]) -> list[str]:
    """Return each requested encoder once: `visual=A|B` asks for `visual=A` and `visual=B`."""
    found = []
    for text in texts:
        modality, names = split_request(text)
        found += [f"{modality}={name}" if modality else name for name in names.split("|")]
    return list(dict.fromkeys(found))


def split_request(request: str) -> tuple[str, str]:
    """Split `visual=timm:NAME` into modality and features; the modality is empty where none is named.

    InputError: a modality's name that is no identifier.
    """
    modality, separator, features = request.partition("=")
    if not separator:
        return "", request
    if not MODALITY_NAME.fullmatch(modality) or not features:
        raise InputError(
            f"--features {request!r}: expected NAME, or MODALITY=NAME such as visual=timm:NAME.\n"
            "A modality's name has letters, digits and '_', a letter first."
        )
    return modality, features


def check_cases(modalities: Iterable[str]) -> None:
    """Check that no two names of modalities are one on a disk that knows no case. InputError: they are."""
    seen: dict[str, str] = {}
    for name in modalities:
        if seen.setdefault(name.lower(), name) != name:
            raise InputError(f"modalities {seen[name.lower()]} and {name} differ in case alone.\nRename one of them.")


def split_layers(features: str) -> tuple[str, str]:
    """Split `hf:NAME@LAYERS` into the model's name or folder and the layers. InputError: no layers after the `@`."""
    source, separator, layers = features.removeprefix("hf:").rpartition("@")
    if not separator and layers:
        return layers, "-1"
    if not LAYERS.fullmatch(layers) or not source:
        wrong = f"{layers!r} are no layers of a model" if source else "no model is named"
        raise InputError(
            f"features {features!r}: {wrong}.\n"
            "Expected hf:NAME_OR_FOLDER, or with @ a layer (4, or -4 from the end), layers to add (4+5), or the last "
            "ones (-4:)."
        )
    return source, layers


def stored_name(features: str) -> str:
    """Return the name under which features are stored: of `hf:FOLDER@LAYERS` the folder's last part alone counts."""
    if not features.startswith("hf:"):
        return features
    source, _ = split_layers(features)
    folder = Path(source).expanduser()
    return f"hf:{folder.resolve().name}{features.removeprefix(f'hf:{source}')}" if folder.is_dir() else features


def known_features(features: str) -> str:
    """Return the name under which features are stored: of `hf:FOLDER@LAYERS` the folder's name alone counts.

    InputError: an unknown name, a library that is not installed, a folder that is not there.
    """
    library = LIBRARIES.get("hf:" if features.startswith("hf:") else features)
    if library and find_spec(library) is None:
        raise InputError(
            f"{features} needs {library}, which is not installed.\n"
            f"Install it with `pip install 'mlemiss[{EXTRAS[library]}]'`."
        )
    if not features.startswith("hf:"):
        if library is None and not is_encoder_class(plugin_of(features)):
            resolve_tag(features)
        return features
    if (stored := stored_name(features)) != features:
        return stored
    source, _ = split_layers(features)
    folder = Path(source).expanduser()
    if (not folder.is_dir() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source)) or source.startswith("."):
        raise InputError(f"features {features!r}: no folder {folder}.\nName a folder with a model, or one on the hub.")
    return features


def brings_weights(features: str) -> bool:
    """Return whether an encoder has weights of its own, or needs none: all but networks of pictures."""
    return features in LIBRARIES or features.startswith("hf:") or is_encoder_class(plugin_of(features))


def is_encoder_class(value: object) -> bool:
    """Return whether a plug-in is an encoder of its own, and no timm tag."""
    return isinstance(value, type) and issubclass(value, Encoder)


def resolve_tag(features: str) -> str:
    """Return the full timm tag of a feature name, for example `resnet50.tv_in1k`. InputError: an unknown name.

    A plug-in is an entry point `NAME = "package.module:TAG"` naming a str: the tag of a model it registered with timm.
    """
    if features in BACKBONES:
        return BACKBONES[features][0]
    if isinstance(tag := plugin_of(features), str):
        return tag
    if features.startswith("timm:"):
        import timm

        name = features.removeprefix("timm:")
        architecture, _, tag = name.partition(".")
        if timm.is_model(architecture) and (not tag or name in timm.list_models(architecture, pretrained=True)):
            config = timm.models.get_pretrained_cfg(name)
            return f"{architecture}.{config.tag}" if config and config.tag else architecture
        known = timm.list_models(architecture, pretrained=True) or timm.list_models(f"*{architecture}*")
        known = known or get_close_matches(architecture, timm.list_models(), 6)
        raise InputError(
            f"unknown timm model {name!r}" + (f"; did you mean {', '.join(known[:6])}?" if known else ".") + "\n"
            "`python -c 'import timm; print(timm.list_models())'` lists all of them."
        )
    raise InputError(
        f"unknown features {features!r}: expected {', '.join(listed_encoders())}.\n"
        "`mlemiss list features` describes them."
    )


def stored_requests(weights: Mapping[str, Weights]) -> dict[str, Weights]:
    """Return the requests under their stored names (`known_features`), checked before anything is loaded.

    InputError: as `known_features`; two folders of one name; a modality that this encoder does not make.
    """
    stored: dict[str, Weights] = {}
    for request, chosen in weights.items():
        modality, features = split_request(request)
        name = known_features(features)
        name = f"{modality}={name}" if modality else name
        if stored.get(name, chosen) != chosen:
            raise InputError(f"--features {request!r}: another folder has this name too.\nRename one of the two.")
        stored[name] = chosen
    return stored


def inputs_for(encoder: Encoder, modality: str, request: str) -> dict[str, str]:
    """Return what each modality of a store is computed from: all that the encoder makes, or the one that is asked for.

    InputError: the encoder makes another one, as text is no sound.
    """
    if not modality:
        kinds = set(encoder.inputs.values())
        if "text" in kinds and len(kinds) > 1:  # clips of one file share a result, and so do those of one text
            raise InputError(
                f"--features {request}: it is computed from text and {', '.join(sorted(kinds - {'text'}))}, "
                f"which cannot be in one store.\nAsk for each: {', '.join(f'{m}={request}' for m in encoder.inputs)}."
            )
        return dict(encoder.inputs)
    if modality in encoder.inputs:
        return {modality: encoder.inputs[modality]}
    (kind, *others) = encoder.inputs.values()
    if others or modality in INPUTS.values():
        raise InputError(
            f"--features {request}: it is computed from {', '.join(encoder.inputs.values())}, which is no {modality}.\n"
            f"Name it {' or '.join(f'{name}=…' for name in encoder.inputs)}."
        )
    return {modality: kind}
