"""Windows to batches: distinct items, targets that see only the past, the same batches after a resume."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrec.batch import HistoryBatch
from mmrec.contents import Content, VectorContent
from mmrec.feed.batches import START, Windows, collate, ordered_users, pad, ranks_within
from mmrec.feed.catalogue import Catalogue
from mmrec.feed.histories import Histories
from mmrec.feed.items import ItemReader, Modality, optional_links, picture_links
from mmrec.feed.loader import HistoryLoader
from mmrec.feed.splits import Split
from tests.feeds import write_feed


class Rows:
    """A source whose content is the row itself."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def gather(self, rows: npt.NDArray[np.int64]) -> Content:
        self.asked += rows.tolist()
        return VectorContent(torch.from_numpy(rows[:, None].astype(np.float32)))


def reader(items: int = 50) -> ItemReader:
    return ItemReader({"text": Modality(optional_links(np.arange(items)), Rows())})


def memory(times: list[list[int]]) -> Histories:
    """Users with the given times; event ``e`` shows item ``e``."""
    lengths = [len(user) for user in times]
    total = sum(lengths)
    return Histories(
        user_ids=np.array([str(u) for u in range(len(times))], dtype=object),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        item_rows=np.arange(total, dtype=np.int64),
        timestamps=np.array([t for user in times for t in sorted(user)], dtype=np.int64),
        has_time=True,
        event_names=[],
        event_codes=None,
        values=None,
    )


def split_of(histories: Histories) -> Split:
    from mmrec.feed.splits import Cases

    none = np.zeros(0, dtype=np.int64)
    roles = np.zeros(histories.num_events, dtype=np.uint8)
    cases = Cases(none, none, none, none, 0, roles)
    return Split("all", "leave_last_out", {}, np.ones(histories.num_events, dtype=bool), roles, cases, cases)


def visible(batch: HistoryBatch, target: int) -> list[int]:
    """Items of the slots that the state of a target may know."""
    user, time = int(batch.targets.user_index[target]), int(batch.targets.time_index[target])
    if time == START:
        return []
    users = batch.users
    seen = users.valid[user] & (users.instants[user] <= users.instants[user, time])
    return batch.items.item_rows[users.item_positions[user][seen]].tolist()


def loader(histories: Histories, **choices: object) -> HistoryLoader:
    settings = {
        "batch_users": 2,
        "history_length": 4,
        "num_negatives": 0,
        "negatives": np.ones(histories.num_events, dtype=bool),
        "prefetch": 0,
        "seed": 3,
    } | choices
    return HistoryLoader(histories, split_of(histories), reader(histories.num_events), **settings)  # type: ignore[arg-type]


def test_pad_and_ranks() -> None:
    assert pad(np.array([1, 2, 3]), np.array([1, 0, 2]), width=2).tolist() == [[1, 0], [0, 0], [2, 3]]
    assert ranks_within(np.array([5, 5, 9, 9, 9, 12]), np.array([3, 0, 3])).tolist() == [0, 0, 1, 0, 0, 1]


def test_ordered_users_keep_their_order() -> None:
    users = ordered_users(np.array([7, 8, 9]), np.array([2, 1, 0]))
    assert users.item_positions.tolist() == [[7, 8], [9, 0], [0, 0]]
    assert users.valid.tolist() == [[True, True], [True, False], [False, False]]
    assert users.instants.tolist() == [[0, 1], [0, 0], [0, 0]]


def test_targets_by_hand() -> None:
    """Times 1, 2, 2, 3: both events of instant 2 are asked from the first slot, the last from the third."""
    histories = memory([[1, 2, 2, 3]])
    windows = Windows(np.array([0]), np.arange(4), np.array([4]), np.array([0, 1, 1, 2]), opens=np.array([True]))
    batch = collate(histories, windows, reader(), negatives=np.array([40, 2]))
    assert batch.items.item_rows.tolist() == [0, 1, 2, 3, 40]
    assert batch.targets.item_positions.tolist() == [0, 1, 2, 3]
    assert batch.targets.time_index.tolist() == [START, 0, 0, 2]
    assert batch.negatives.tolist() == [4, 2]
    windows = Windows(np.array([0]), np.arange(4), np.array([4]), np.array([0, 1, 1, 2]), opens=np.array([False]))
    assert collate(histories, windows, reader(), negatives=np.zeros(0, np.int64)).targets.time_index.tolist() == [
        0,
        0,
        2,
    ]


times = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=9), min_size=1, max_size=6)


@given(times, st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_apart_never_shows_a_target_its_own_instant(given_times: list[list[int]], length: int) -> None:
    histories = memory(given_times)
    for batch in loader(histories, simultaneous="apart", history_length=length).batches(epoch=0):
        for target in range(len(batch.targets)):
            item = int(batch.items.item_rows[batch.targets.item_positions[target]])
            for other in visible(batch, target):
                assert histories.user_rows[other] == histories.user_rows[item]
                assert histories.timestamps[other] < histories.timestamps[item]


@given(times)
@settings(max_examples=60, deadline=None)
def test_shuffled_never_shows_a_target_itself_or_its_future(given_times: list[list[int]]) -> None:
    histories = memory(given_times)
    for batch in loader(histories, history_length=20).batches(epoch=1):
        for target in range(len(batch.targets)):
            item = int(batch.items.item_rows[batch.targets.item_positions[target]])
            seen = visible(batch, target)
            assert item not in seen
            assert all(histories.timestamps[other] <= histories.timestamps[item] for other in seen)


def test_every_event_is_a_target_once_where_a_window_holds_all() -> None:
    histories = memory([[1, 2, 3], [1, 1], [5]])
    found: Counter[int] = Counter()
    for batch in loader(histories).batches(epoch=0):
        found.update(batch.items.item_rows[batch.targets.item_positions].tolist())
    assert found == Counter(range(6))


def test_long_histories_are_covered_over_epochs() -> None:
    histories = memory([list(range(23))])
    lengths = [len(list(loader(histories).batches(epoch=e))) for e in range(3)]
    assert lengths == [3, 3, 3], "1 + 22 // 4 = 6 windows, two a batch"
    found: Counter[int] = Counter()
    for epoch in range(30):
        for batch in loader(histories).batches(epoch=epoch):
            found.update(batch.items.item_rows[batch.targets.item_positions].tolist())
    assert set(found) == set(range(23))


def test_batches_depend_on_seed_epoch_and_index_alone() -> None:
    histories = memory([[t % 3 for t in range(n)] for n in (3, 9, 4, 7, 2)])
    whole = list(loader(histories, num_negatives=3).batches(epoch=2))
    resumed = list(loader(histories, num_negatives=3, prefetch=2).batches(epoch=2, start=2))
    assert len(resumed) == len(whole) - 2
    for one, other in zip(whole[2:], resumed, strict=True):
        assert torch.equal(one.items.item_rows, other.items.item_rows)
        assert torch.equal(one.users.item_positions, other.users.item_positions)
        assert torch.equal(one.negatives, other.negatives)
    different = next(loader(histories, num_negatives=3, seed=4).batches(epoch=2))
    assert not torch.equal(whole[0].items.item_rows, different.items.item_rows)


def test_prefetching_hands_over_errors() -> None:
    class Broken(Rows):
        def gather(self, rows: npt.NDArray[np.int64]) -> Content:
            raise OSError("the disk is gone")

    histories = memory([[1, 2]])
    items = ItemReader({"text": Modality(optional_links(np.arange(2)), Broken())})
    broken = HistoryLoader(
        histories,
        split_of(histories),
        items,
        batch_users=1,
        history_length=3,
        num_negatives=0,
        negatives=np.ones(2, dtype=bool),
        prefetch=2,
    )
    with pytest.raises(OSError, match="the disk is gone"):
        list(broken.batches(epoch=0))


def test_reader_asks_for_each_distinct_content_once(tmp_path: Path) -> None:
    picture = np.zeros((2, 2, 3), np.uint8)
    folder = write_feed(
        tmp_path / "feed",
        interactions=[("u", "a", 1), ("u", "b", 2), ("u", "c", 3)],
        captions={"a": "red scarf", "b": "red scarf"},
        pictures={"a": [picture, picture + 1, picture + 2], "c": picture},
    )
    catalogue = Catalogue.load(folder)
    text, image = Rows(), Rows()
    items = ItemReader(
        {
            "text": Modality(optional_links(catalogue.caption_rows), text),
            "image": Modality(picture_links(catalogue, max_images=2), image),
        }
    )
    batch = items.read(np.array([2, 1, 0]))
    assert text.asked == [0], "two items share one caption"
    assert image.asked == [0, 1], "the third picture is over the budget, the first is shared"
    assert batch.parts["text"].item_index.tolist() == [1, 2]
    assert batch.parts["text"].content_index.tolist() == [0, 0]
    assert batch.parts["image"].item_index.tolist() == [0, 2, 2]
    assert batch.parts["image"].content_index.tolist() == [0, 0, 1]
    assert "text" not in items.read(np.array([2])).parts
