"""What strangers are shown: whatever meets their conditions, however far down in the orders it stands."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mmrec.errors import RequestError
from mmrec.feed.catalogue import NEVER
from mmrec.serving.answers.fallback import fresh_rows, popular_rows
from mmrec.serving.model.exported import Exported, Pair
from mmrec.serving.posts.live_items import LiveItems
from mmrec.serving.posts.published import Published
from tests.serving.served import Server

COUNT = 5_000
NONE: frozenset[str] = frozenset()


def post(item_id: str, colour: str, at: int = 0) -> Published:
    return Published(item_id, None, {"colour": colour}, ("text",), np.zeros(4, dtype=np.float32), at)


@pytest.fixture
def items(pair: Pair) -> LiveItems:
    """Items ``i0``, ``i1``, ...; the last two alone are teal."""
    table = pd.DataFrame({"item_id": [f"i{row}" for row in range(COUNT)], "caption": None, "colour": "red"})
    table.loc[COUNT - 2 :, "colour"] = "teal"
    rows = {str(item_id): row for row, item_id in enumerate(table["item_id"])}
    full = np.zeros((COUNT, 4), dtype=np.float32)
    return LiveItems(
        Exported(pair.exported.layout, pair.exported.store, full, table, lambda item_id: rows.get(item_id, -1))
    )


def test_the_orders_are_whole(pair: Pair) -> None:
    assembly = pair.recommender.assembly
    seen = np.arange(COUNT)
    seen[7] = NEVER
    catalogue = replace(assembly.catalogue, item_ids=seen.astype(str).astype(object), first_seen=seen)
    assert fresh_rows(catalogue).tolist() == [row for row in range(COUNT - 1, -1, -1) if row != 7] + [7]
    rows = np.concatenate([np.arange(4_000), [11, 11, 5]])
    histories = replace(assembly.histories, item_rows=rows, timestamps=np.zeros(len(rows), dtype=np.int64))
    assert popular_rows(catalogue, histories).tolist()[:3] == [11, 5, 0]
    assert len(popular_rows(catalogue, histories)) == 4_000, "those that nobody chose are not popular"


class TestFirst:
    def test_without_conditions_the_first_that_are_offered(self, items: LiveItems) -> None:
        items.remove("i0")
        items.put(post("i2", "blue"))
        rows = np.arange(COUNT)
        assert items.first(rows, k=3, where="", dropped=frozenset({"i1"})) == ["i2", "i3", "i4"]
        assert len(items.first(rows, k=COUNT, where="", dropped=NONE)) == COUNT - 1

    def test_conditions_come_before_the_cut(self, items: LiveItems) -> None:
        rows = np.arange(COUNT)
        assert items.first(rows, k=5, where="colour=teal", dropped=NONE) == ["i4998", "i4999"]
        assert items.first(rows, k=1, where="colour=teal", dropped=frozenset({"i4998"})) == ["i4999"]

    def test_what_was_published_over_an_item_stands_in_its_place(self, items: LiveItems) -> None:
        items.put(post("i3000", "teal"))
        items.put(post("i4998", "red"))
        items.remove("i4999")
        assert items.first(np.arange(COUNT), k=5, where="colour=teal", dropped=NONE) == ["i3000"]

    def test_conditions_that_are_none(self, items: LiveItems) -> None:
        with pytest.raises(RequestError):
            items.first(np.arange(COUNT), k=5, where="color=teal", dropped=NONE)


def test_the_newest_that_meet_conditions(items: LiveItems) -> None:
    for number in range(200):
        items.put(post(f"n{number}", "teal" if number < 3 else "red", at=number))
    items.remove("n199")
    assert items.newest(k=2, where="", dropped=frozenset({"n198"})) == ["n197", "n196"]
    assert items.newest(k=2, where="colour=teal", dropped=NONE) == ["n2", "n1"]


def test_a_post_that_alone_meets_conditions_is_shown_whatever_is_newer(server: Server) -> None:
    server.put("old", {"caption": "a scarf", "attributes": {"colour": "teal"}, "published_at": 1})
    for number in range(3):
        server.put(f"new-{number}", {"caption": f"post {number}", "attributes": {"colour": "red"}})
    assert server.ids("recommend", {"history": [], "k": 2, "where": "colour=teal"}) == ["old"]
    assert server.ids("recommend", {"history": [], "k": 30, "where": "colour=teal"}) == ["old"]


def test_as_many_as_are_asked_for(server: Server) -> None:
    for k in (1, 2, 9, 30):
        assert len(set(server.ids("recommend", {"history": [], "k": k}))) == k
    assert len(set(server.ids("recommend", {"history": [], "k": 50, "where": "colour=blue"}))) == 10
