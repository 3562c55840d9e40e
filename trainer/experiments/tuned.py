"""What an earlier `mlemiss tune` chose, for `train --tuned` and `reproduce --tuned`."""

import json
from collections.abc import Sequence
from pathlib import Path

from ...pipeline.console import amount
from ...pipeline.errors import InputError
from ...pipeline.stores.store import FeatureStore
from ..settings import Settings
from .grid import Cell, Grid, GridPlan, plan_grid

TUNED = "tuned.json"
ROW = ("dataset", "features", "store", "method", "fusion", "missing", "split")  # what a choice is looked up by


class Tuned:
    """What an earlier `mlemiss tune` chose.

    path: its folder. InputError: it holds no choice, or a file that cannot be read as one.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self.document = json.loads((path / TUNED).read_text(encoding="utf-8"))
            self.rows = {tuple(row[name] for name in ROW): row for row in self.document["rows"]}
            self._settings = {key: Settings(**row["settings"]) for key, row in self.rows.items()}
            self.skipped = {entry["cell"] for entry in self.document["skipped"]}
            self.facts = {"run": path.absolute().name} | {name: self.document[name] for name in ("draws", "seeds")}
        except OSError:
            raise InputError(f"no {TUNED} in {path}.\nName the folder of a `mlemiss tune` that has ended.") from None
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path / TUNED} cannot be read as what `mlemiss tune` chose.\nRun it again.") from None

    @property
    def text(self) -> str:
        """Say where the settings are from."""
        return f"settings of {self.path}, chosen among {amount(self.facts['draws'], 'draw')} of each row"

    def plan(self, stores: Sequence[FeatureStore], grid: Grid) -> GridPlan:
        """Plan a grid with the settings that were chosen for each of its rows.

        InputError: see `grid.plan_grid` and `settings`, or seeds that were tuned on.
        """
        if shared := set(grid.seeds) & set(self.facts["seeds"]):
            raise InputError(f"seeds {sorted(shared)} were tuned on: they cannot be reported.\nTake other seeds.")
        plan = plan_grid(stores, grid, self.settings)
        for cell in plan.cells:
            cell.tuned = self.describe(cell)
        return plan

    def settings(self, cell: Cell) -> list[Settings]:
        """Return the settings that were chosen for a cell's row, or the defaults where it could not be trained.

        InputError: the run was of other data, features or methods.
        """
        key = self._key(cell)
        if key in self._settings:
            return [self._settings[key]]
        if cell.name in self.skipped:
            return [Settings()]
        differs = [
            f"{name} {value} (tuned: {', '.join(dict.fromkeys(row[name] for row in self.rows.values()))})"
            for name, value in zip(ROW, key, strict=True)
            if value not in {row[name] for row in self.rows.values()}
        ]
        raise InputError(
            f"{self.path} has tuned nothing for {cell.name}: {'; '.join(differs) or 'not this combination'}.\n"
            "Tune it with the same options, or leave --tuned out."
        )

    def describe(self, cell: Cell) -> dict | None:
        """Return what a cell's results say of how its settings were chosen; None where they were not."""
        row = self.rows.get(self._key(cell))
        if row is None:
            return None
        draw = row["draw"]
        return self.facts | {"draw": draw, "validation": row["validation"][draw], "missing_test": row["missing_test"]}

    def _key(self, cell: Cell) -> tuple:
        store = cell.clips.store
        features = cell.clips.describe()["features"]
        return store.dataset, features, store.fingerprint, cell.method, cell.fusion, cell.missing.name, cell.split
