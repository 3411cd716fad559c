"""What a model must show before it answers anybody."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmrec.search.index import ExactStore
from mmrec.serving.answers.service import Service
from mmrec.serving.deployment.self_check import check
from mmrec.serving.model.exported import Exported, Pair
from mmrec.serving.problems import ProblemError
from mmrec.serving.stores.sqlite_store import SqliteStore
from tests.serving.served import LIMITS, trace


def test_posts_must_find_themselves(pair: Pair, tmp_path: Path) -> None:
    """An index whose rows are those of other items is no index of this run."""
    good = pair.exported
    turned = ExactStore(np.asarray(good.layout.shape(np.array(good.full[::-1]))))
    bad = Exported(good.layout, turned, good.full, good.table, good.row_of)
    assert check(Service(pair, SqliteStore(tmp_path / "a"), limits=LIMITS), trace()).found == 30
    with pytest.raises(ProblemError, match="items that are found by their own vectors"):
        check(Service(Pair(pair.recommender, bad), SqliteStore(tmp_path / "b"), limits=LIMITS), trace())


def test_numbers_must_be_finite(pair: Pair, tmp_path: Path) -> None:
    good = pair.exported
    full = np.array(good.full)
    full[3, 2] = np.nan
    bad = Exported(good.layout, good.store, full, good.table, good.row_of)
    with pytest.raises(ProblemError, match="finite"):
        check(Service(Pair(pair.recommender, bad), SqliteStore(tmp_path / "data"), limits=LIMITS), trace())
