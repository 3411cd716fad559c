"""The model's rank of every target on disk, so that two runs can be compared case by case."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from mmrec import columns
from mmrec.errors import ArtifactError
from mmrec.evaluation.metrics import Places
from mmrec.evaluation.ranking import Ranks
from mmrec.storage import atomic_file

CASES = "cases.parquet"
_COLUMNS = ["setting", "case", columns.USER_ID, columns.ITEM_ID, "above", "tied"]


@dataclass(frozen=True)
class CaseTable:
    """One row a target: ``setting``, ``case``, ``user_id``, ``item_id``, ``above``, ``tied``.

    Rows of one case of one setting lie together, cases ascending.
    """

    rows: pd.DataFrame

    @classmethod
    def of(
        cls,
        ranks: dict[str, Ranks],
        *,
        user_ids: npt.NDArray[np.object_],
        item_ids: npt.NDArray[np.object_],
    ) -> CaseTable:
        """Collect the ranks of several settings.

        Args:
            user_ids: shape (cases,), external id of each case's user.
            item_ids: shape (items,), external id of each item.
        """
        tables = []
        for name, found in ranks.items():
            cases = found.cases[found.places.case_index]
            table = pd.DataFrame(
                {"setting": name, "case": cases, "above": found.places.above, "tied": found.places.tied}
            )
            table[columns.USER_ID] = user_ids[cases].astype(str)
            table[columns.ITEM_ID] = item_ids[found.targets].astype(str)
            tables.append(table[_COLUMNS])
        return cls(pd.concat(tables, ignore_index=True))

    @classmethod
    def load(cls, folder: Path) -> CaseTable:
        """Read ``cases.parquet`` of an evaluation folder.

        Raises:
            ArtifactError: the folder holds no evaluation.
        """
        path = folder / CASES
        if not path.is_file():
            raise ArtifactError(
                "an evaluation", got=f"a folder without {CASES}", where=str(folder), fix="Run: mmrec evaluate RUN."
            )
        return cls(pd.read_parquet(path, columns=_COLUMNS))

    def save(self, folder: Path) -> None:
        """Write ``cases.parquet``."""
        with atomic_file(folder / CASES) as partial:
            self.rows.to_parquet(partial, index=False)

    @property
    def settings(self) -> list[str]:
        """Names of the settings, in the order they were evaluated in."""
        return [str(name) for name in self.rows["setting"].unique()]

    def questions(self, setting: str) -> pd.DataFrame:
        """Return what was asked under a setting: case, user and target of every row."""
        rows = self.rows[self.rows["setting"] == setting]
        return rows[["case", columns.USER_ID, columns.ITEM_ID]].reset_index(drop=True)

    def places(self, setting: str) -> tuple[Places, npt.NDArray[np.int64]]:
        """Return the places under a setting, and for each case a number that stands for its user."""
        rows = self.rows[self.rows["setting"] == setting]
        starts = np.flatnonzero(np.diff(rows["case"].to_numpy(), prepend=-1))
        offsets = np.append(starts, len(rows)).astype(np.int64)
        users = pd.factorize(rows[columns.USER_ID].to_numpy()[starts])[0].astype(np.int64)
        above = cast("npt.NDArray[np.int64]", rows["above"].to_numpy(dtype=np.int64))
        return Places(offsets, above, rows["tied"].to_numpy(dtype=np.int64)), users
