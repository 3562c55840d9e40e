"""The paper's tables and figures as grids, and its numbers: test accuracy in percent, the mean of five runs.

Source: F. Ma, X. Xu, S.-L. Huang, L. Zhang, "Maximum Likelihood Estimation for Multimodal Learning with Missing
Modality", 2021, arXiv:2108.10513, Tables 1 and 2. The paper gives no deviations and splits by clip.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ...pipeline.errors import InputError
from ..methods import EACH
from ..settings import FUSIONS
from .grid import Grid

PAPER = "Ma, Xu, Huang, Zhang (2021), arXiv:2108.10513"

TABLE1_COLUMNS = ("visual:0.8", "visual:0.9", "visual:0.95", "audio:0.8", "audio:0.9", "audio:0.95")
# eNTERFACE'05, ResNet-50s trained end to end. (method, fusion) -> a value a column.
TABLE1 = {
    ("lower-bound", "addition"): (46.91, 35.26, 26.39, 50.93, 35.26, 27.53),
    ("lower-bound", "concatenation"): (46.49, 36.39, 27.11, 46.29, 33.71, 27.84),
    ("lower-bound", "outer"): (42.78, 37.53, 26.91, 48.14, 34.95, 28.56),
    ("hgr", "addition"): (58.97, 59.69, 41.34, 77.32, 74.12, 54.95),
    ("hgr", "concatenation"): (63.51, 57.84, 41.34, 79.18, 75.67, 57.42),
    ("hgr", "outer"): (64.64, 59.69, 49.90, 77.94, 76.29, 55.46),
    ("zero-padding", "addition"): (69.07, 67.84, 58.66, 80.41, 78.35, 76.49),
    ("zero-padding", "concatenation"): (68.76, 67.11, 60.21, 80.93, 78.25, 76.70),
    ("mle", "addition"): (72.37, 71.65, 66.29, 81.24, 80.31, 79.38),
    ("mle", "concatenation"): (72.27, 70.82, 64.74, 81.24, 80.21, 79.79),
    ("mle", "outer"): (72.06, 71.13, 66.08, 81.65, 81.03, 80.31),
}

TABLE2_COLUMNS = ("visual:0.5", "visual:0.8", "visual:0.9", "audio:0.5", "audio:0.8", "audio:0.9")
# RAVDESS, features of pretrained networks; which fusion is not said. (features, method) -> a value a column.
TABLE2 = {
    ("vgg16", "ae1"): (62.66, 57.92, 48.67, 69.48, 68.67, 66.59),
    ("vgg16", "ae2"): (66.24, 58.15, 48.90, 70.64, 69.48, 66.59),
    ("vgg16", "mle"): (78.84, 61.16, 49.71, 91.45, 89.36, 87.51),
    ("resnet34", "ae1"): (60.92, 53.64, 47.17, 67.40, 62.66, 62.43),
    ("resnet34", "ae2"): (62.31, 54.10, 49.60, 68.67, 63.47, 62.77),
    ("resnet34", "mle"): (80.46, 64.62, 52.37, 92.14, 90.06, 86.59),
    ("resnet50", "ae1"): (67.05, 60.12, 54.45, 72.60, 70.40, 68.32),
    ("resnet50", "ae2"): (69.13, 61.16, 50.64, 73.76, 70.06, 66.94),
    ("resnet50", "mle"): (84.05, 68.90, 57.11, 91.91, 89.48, 88.79),
}


def table2_value(features: str, method: str, missing: str) -> float | None:
    """Return Table 2's number, or None where it has none."""
    row = TABLE2.get((features, method))
    return row[TABLE2_COLUMNS.index(missing)] if row and missing in TABLE2_COLUMNS else None


@dataclass(frozen=True)
class Exhibit:
    """One of the paper's tables or figures as a grid over a dataset's cached features, or over its media.

    fusions, splits: unless others are asked for. end_to_end: ``features`` names the backbone that is trained.
    shows: beside accuracies ``curves`` over epochs, ``confusions``, or nothing.
    """

    name: str
    title: str
    dataset: str
    features: tuple[str, ...]
    methods: tuple[str, ...]
    missing: tuple[str, ...]
    fusions: tuple[str, ...] = ("addition",)
    splits: tuple[str, ...] = ("clip", "subject")
    end_to_end: bool = False
    shows: str = ""

    def grid(
        self,
        fusions: Sequence[str] = (),
        splits: Sequence[str] = (),
        seeds: int | Sequence[int] = 5,
        single: bool = False,
    ) -> Grid:
        """Return what is combined, with other fusions and splits where they are given; single: each modality alone."""
        return Grid(
            [*self.methods, *[EACH] * single],
            fusions or self.fusions,
            self.missing,
            "none",
            seeds,
            splits or self.splits,
        )

    @property
    def source(self) -> str:
        """Return the paper's name and table."""
        return f"{PAPER}, Table {1 if self.end_to_end else 2}"

    def value(self, features: str, method: str, fusion: str, missing: str) -> float | None:
        """Return the paper's accuracy, or None; end to end the one of its ResNet-50, whatever the backbone."""
        if not self.end_to_end:
            return table2_value(features, method, missing)
        row = TABLE1.get((method, fusion))
        return row[TABLE1_COLUMNS.index(missing)] if row and missing in TABLE1_COLUMNS else None


TRAINED = {"dataset": "enterface05", "features": ("resnet50",), "splits": ("clip",), "end_to_end": True}
EXHIBITS = {
    exhibit.name: exhibit
    for exhibit in (
        Exhibit(
            "table2",
            "Table 2: classification with missing modality on RAVDESS, cached features",
            "ravdess",
            ("vgg16", "resnet34", "resnet50"),
            ("ae1", "ae2", "mle"),
            TABLE2_COLUMNS,
        ),
        Exhibit(
            "figure6",
            "Figure 6: accuracy against epoch, half of the training clips without audio, RAVDESS",
            "ravdess",
            ("vgg16", "resnet34", "resnet50"),
            ("ae1", "ae2", "mle"),
            ("audio:0.5",),
            shows="curves",
        ),
        Exhibit(
            "table1",
            "Table 1: classification with missing modality on eNTERFACE'05, networks trained end to end",
            methods=("lower-bound", "hgr", "zero-padding", "mle"),
            missing=TABLE1_COLUMNS,
            fusions=FUSIONS,
            **TRAINED,
        ),
        Exhibit(
            "figure4",
            "Figure 4: accuracy against the missing rate of audio, eNTERFACE'05, networks trained end to end",
            methods=("zero-padding", "mle"),
            missing=("audio:0.5", "audio:0.8", "audio:0.9", "audio:0.95"),
            fusions=FUSIONS,
            **TRAINED,
        ),
        Exhibit(
            "figure5",
            "Figure 5: confusion matrices, 95 % of the training clips without picture, eNTERFACE'05, end to end",
            methods=("lower-bound", "hgr", "zero-padding", "mle"),
            missing=("visual:0.95",),
            shows="confusions",
            **TRAINED,
        ),
    )
}


def find_exhibit(name: str) -> Exhibit:
    """Return the exhibit of a name. InputError: an unknown name."""
    if name not in EXHIBITS:
        raise InputError(f"unknown exhibit {name!r}: expected {', '.join(EXHIBITS)}.")
    return EXHIBITS[name]
