"""What an earlier `mlemiss tune` chose, for `train --tuned` and `reproduce --tuned`."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...pipeline.console import amount
from ...pipeline.errors import InputError
from ...pipeline.stores.store import FeatureStore
from ..settings import Settings
from .grid import Cell, Grid, GridPlan, plan_grid

TUNED, DRAWS = "tuned.json", ".tune"  # what was chosen; marks a folder of draws, finished or not
ROW = ("dataset", "features", "store", "method", "fusion", "missing", "missing_test", "split")  # names a choice


class Tuned:
    """What an earlier `mlemiss tune` chose.

    path: its folder. ended: refuse a choice that a later command there, which has not ended, would replace.
    InputError: the folder holds no choice, or a file that cannot be read as one.
    """

    def __init__(self, path: Path, *, ended: bool = True):
        self.path = path
        try:
            self.document = json.loads((path / TUNED).read_text(encoding="utf-8"))
            self.rows = {tuple(row[name] for name in ROW): row for row in self.document["rows"]}
            self._settings = {key: Settings(**row["settings"]) for key, row in self.rows.items()}
            self.skipped = {entry["cell"] for entry in self.document["skipped"]}
            self.chosen = {
                key: {"draw": row["draw"], "validation": row["validation"][row["draw"]]}
                for key, row in self.rows.items()
            }
            content = json.dumps([self.document["space"], self.document["rows"]], sort_keys=True)
            self.facts = {"run": path.absolute().name} | {name: self.document[name] for name in ("draws", "seeds")}
            self.facts["digest"] = hashlib.sha256(content.encode()).hexdigest()[:8]
        except OSError:
            raise InputError(
                f"no {TUNED} in the folder {path}.\nName the folder (--out) of a `mlemiss tune` that has ended."
            ) from None
        except (ValueError, KeyError, TypeError, IndexError):
            raise InputError(f"{path / TUNED} cannot be read as what `mlemiss tune` chose.\nRun it again.") from None
        if ended and self._later(path / DRAWS):
            raise InputError(
                f"{path / TUNED} is of an earlier command than the draws in {path}, whose tuning has not ended.\n"
                f"Run the later command again to end it, or the earlier one, whose draws are kept: "
                f"{self.document.get('command')}"
            )

    def _later(self, marker: Path) -> bool:
        """Tell whether a later command has begun in the folder, and has not ended."""
        begun = marker.read_text(encoding="utf-8").strip() if marker.is_file() else ""
        return bool(begun) and begun != self.document.get("asked")

    @property
    def text(self) -> str:
        """Say where the settings are from."""
        several = self._settings.values()
        alike = dict.fromkeys(f"{amount(one.epochs, 'epoch')} of {one.batch_size} segments" for one in several)
        draws = amount(self.facts["draws"], "draw")
        return f"settings of {self.path}, chosen among {draws} of each row; {' or '.join(alike)}"

    def plan(self, stores: Sequence[FeatureStore], grid: Grid) -> GridPlan:
        """Plan a grid with the settings that were chosen for each of its rows.

        InputError: see `grid.plan_grid` and `settings`, or seeds that were tuned on.
        """
        if shared := set(grid.seeds) & set(self.facts["seeds"]):
            raise InputError(f"seeds {sorted(shared)} were tuned on: they cannot be reported.\nTake other seeds.")
        plan = plan_grid(stores, grid, self.settings)
        for cell in plan.cells:
            cell.tuned = self.facts | self._look_up(self.chosen, cell)
            if self._look_up(self.rows, cell).get("given") != cell.clips.store.given:
                raise InputError(
                    f"{self.path} was tuned with other splits or masks than {cell.name}.\nGive it the same files, with "
                    "the tuning seeds in them, or leave --tuned out."
                )
        return plan

    def settings(self, cell: Cell) -> list[Settings]:
        """Return the settings that were chosen for a cell's row; the defaults where it was skipped, as it is again.

        InputError: the run was of other data, features or methods.
        """
        if cell.name in self.skipped and self._key(cell) not in self.rows:
            return [Settings()]
        return [self._look_up(self._settings, cell)]

    def _look_up(self, values: Mapping, cell: Cell) -> Any:
        """Return a row's value. InputError: the row was not tuned."""
        key = self._key(cell)
        if key in values:
            return values[key]
        differs = [
            f"{name} {value} (tuned: {', '.join(dict.fromkeys(row[name] for row in self.rows.values()))})"
            for name, value in zip(ROW, key, strict=True)
            if value not in {row[name] for row in self.rows.values()}
        ]
        raise InputError(
            f"{self.path} has tuned nothing for {cell.name}: {'; '.join(differs) or 'not this combination'}.\n"
            "Tune it with the same options, ask for what was tuned alone (--split, --method, …), or leave --tuned out."
        )

    def _key(self, cell: Cell) -> tuple:
        store = cell.clips.store
        features = cell.clips.describe()["features"]
        row = (cell.method, cell.fusion, cell.missing.name, cell.missing_test.name, cell.split)
        return store.dataset, features, store.fingerprint, *row
