"""The options of several verbs. Imports nothing heavy."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from .encoders.names import MODALITY_NAME
from .stores.remote import Place, parse_place


def parse_stores(text: str) -> Place | str:
    """Parse a store's folder or URL; leave `visual=STORE,audio=STORE` as it is, which `catalogue.open_store` joins."""
    return text if MODALITY_NAME.fullmatch(text.partition("=")[0]) and "=" in text else parse_place(text)


_STORES = {"parser": parse_place, "envvar": "MLEMISS_STORES", "show_default": "stores"}
StoresOption = Annotated[
    Place, typer.Option("--stores", metavar="DIR|URL", help="Stores: a folder, s3:// or http(s)://.", **_STORES)
]
FolderOption = Annotated[
    Place, typer.Option("--stores", metavar="DIR", help="Folder of stores on this machine.", **_STORES)
]
StoreArgument = Annotated[
    Place, typer.Argument(parser=parse_place, metavar="STORE", help="A store: its folder or URL.")
]
StoresArgument = Annotated[
    Place, typer.Argument(parser=parse_stores, metavar="STORE", help="A store: its folder or URL, or visual=A,audio=B.")
]
Device = Literal["auto", "cpu", "cuda", "mps"]
DeviceOption = Annotated[Device, typer.Option(help="Where the networks run; auto: on a GPU if there is one.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document to standard output.")]

# ---- preprocess ----

DatasetOption = Annotated[
    str, typer.Option(help="A known dataset (`list datasets`), or a CSV: clip_id,path,label,subject.")
]
RootOption = Annotated[
    Path | None, typer.Option(help="Folder of the raw clips (default: $MLEMISS_DATA/DATASET or data/DATASET).")
]
BackbonesOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[MODALITY=]NAME",
        help="Encoders (`list features`), repeated or a comma list, such as visual=timm:NAME,audio=hf:FOLDER@-4 "
        "(default: the paper's three).",
    ),
]
WeightsOption = Annotated[
    list[str] | None,
    typer.Option(help="Of networks of pictures: imagenet (default), random, FILE, or NAME=FILE for one of several."),
]
MeanOption = Annotated[
    str | None,
    typer.Option(metavar="R,G,B", help="Mean of the pictures, from 0 to 1, that the weights were trained on (timm's)."),
]
StdOption = Annotated[str | None, typer.Option(metavar="R,G,B", help="Their standard deviation.")]
PrecisionOption = Annotated[
    Literal["fp32", "tf32", "bf16"], typer.Option(help="Of the networks; tf32 is of CUDA GPUs.")
]
MediaOption = Annotated[
    Literal["keep", "only"] | None, typer.Option(help="keep: cache frames and log-Mels too; only: nothing else.")
]
WaveformOption = Annotated[
    bool,
    typer.Option("--waveform", help="The media store keeps the sound, too; it does where an encoder hears it."),
]
ClassesOption = Annotated[
    list[str] | None,
    typer.Option(help="Other classes than the dataset's own, a comma list in the order of their label codes."),
]
WorkersOption = Annotated[
    int | None, typer.Option(min=0, max=4096, help="Worker processes (default: all cores); 0: serial, in this process.")
]
SchedulerOption = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="An existing Dask cluster instead (docs/cluster.md).")
]
ReportOption = Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write Dask's performance report.")]
DashboardOption = Annotated[
    bool, typer.Option("--dashboard", help="Serve Dask's page on loopback; it has no password.")
]
RetryOption = Annotated[
    bool, typer.Option("--retry-failed", help="Try failed clips again; a finished store gets its next revision.")
]
MaxFailuresOption = Annotated[
    int | None, typer.Option(min=0, help="More failed clips than this are an error, and nothing is published.")
]
TINY, AGES = 0.001, 1e9  # seconds: the least and the most of a time limit
TimeoutOption = Annotated[float, typer.Option(min=TINY, max=AGES, help="Seconds a clip may take to decode.")]
LengthOption = Annotated[float, typer.Option(min=TINY, max=AGES, help="Longest clip, in seconds.")]
PixelsOption = Annotated[int, typer.Option(min=1, max=2**31 - 1, help="Largest picture, width times height.")]
MemoryOption = Annotated[
    int, typer.Option(min=5 * 10**8, max=1 << 50, help="Memory that reading a clip may take, bytes.")
]
DamagedOption = Annotated[
    int, typer.Option(min=0, max=30, help="Most damaged frames of the 30 with which the picture is used.")
]
ChannelsOption = Annotated[
    Literal["mean", "first"], typer.Option(help="Of the sound: their mean, or the first one alone.")
]
AudioOption = Annotated[
    str | None,
    typer.Option(help="Sound from files of its own: 03, RAVDESS's wavs. A CSV has a column audio_path."),
]
CropOption = Annotated[
    Literal["centre", "face"], typer.Option(help="Of the frames: their centre, or the clip's face (extra: faces).")
]
NoFaceOption = Annotated[
    Literal["missing", "keep"] | None,
    typer.Option(help="A clip without a face lacks the picture (default), or keeps its centre."),
]
LinksOption = Annotated[
    bool, typer.Option("--follow-links", help="Read clips and enter folders that are links to elsewhere.")
]

# ---- store import ----

MapOption = Annotated[
    list[str],
    typer.Option(
        "--map",
        help="MODALITY=ARRAY for each: arrays, columns or globs of them (visual=face_*); @FILE or @FOLDER after.",
    ),
]
ClipOption = Annotated[
    str | None, typer.Option(help="Clip ids (default: row numbers); rows that share one are its segments.")
]
SegmentsOption = Annotated[
    int | None,
    typer.Option(min=1, max=10000, help="Average a clip's steps over so many windows (default: 30 where they vary)."),
]
PoolOption = Annotated[
    Literal["mean", "mean+std"] | None, typer.Option(help="Average over the whole clip; the deviation, too.")
]
NotFiniteOption = Annotated[
    Literal["error", "missing", "drop"],
    typer.Option(help="Values not finite or beyond float16: the clip is missing, or the step left out."),
]
ZeroOption = Annotated[Literal["keep", "missing"], typer.Option(help="Steps that are all zero: missing, so left out.")]
ConfidenceOption = Annotated[
    float | None, typer.Option(min=0, max=1, help="Leave out OpenFace's frames of less confidence.")
]
