"""Views of a catalogue: made once, never stale, resumed where they stopped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mmrec.errors import FeedError
from mmrec.feed.catalogue import Catalogue
from mmrec.feed.items import ContentSource
from mmrec.preprocessing import views
from mmrec.preprocessing.image import ImagePreprocessor
from mmrec.preprocessing.text import TextPreprocessor
from mmrec.preprocessing.views import IdTable, VectorTable, pixel_view, token_view
from tests.encoders.tiny_models import wordpiece
from tests.feeds import write_feed

CAPTIONS = {"a": "red scarf", "b": "wool", "c": "a soft wool dress with silk and wool", "d": "red scarf"}


def picture(value: int, height: int = 4, width: int = 6) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    pictures = {"a": picture(10), "b": [picture(20), picture(30)], "d": picture(40)}
    folder = write_feed(
        tmp_path / "feed",
        interactions=[("u", "a", 1), ("u", "b", 2), ("u", "c", 3), ("v", "d", 1)],
        captions=CAPTIONS,
        pictures=pictures,
        split=None,
    )
    return Catalogue.load(folder)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> TextPreprocessor:
    folder = tmp_path_factory.mktemp("words")
    wordpiece().save_pretrained(folder)
    (folder / "config.json").write_text("{}")
    return TextPreprocessor.from_transformers(str(folder), max_tokens=6)


class Counting(ImagePreprocessor):
    """Counts the pictures it prepares, and may stop."""

    seen: list[int] = []  # noqa: RUF012
    stop_after = 1000

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        if len(self.seen) >= self.stop_after:
            raise KeyboardInterrupt
        self.seen.append(int(picture.flat[0]))
        return super().__call__(picture)


def test_tokens_are_those_of_the_captions(catalogue: Catalogue, words: TextPreprocessor) -> None:
    view = token_view(catalogue, words)
    assert isinstance(view, ContentSource)
    assert len(view) == len(catalogue.captions) == 3
    assert view.truncated == 1
    rows = catalogue.caption_rows[[2, 0]]
    content = view.gather(rows)
    expected = words.encode([CAPTIONS["c"], CAPTIONS["a"]]).token_ids
    assert content.token_ids.tolist() == expected.values.tolist()
    assert content.lengths.tolist() == [6, 4]


def test_tokens_are_made_once_and_again_for_other_settings(
    catalogue: Catalogue, words: TextPreprocessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = token_view(catalogue, words)
    monkeypatch.setattr(TextPreprocessor, "encode", lambda *_: pytest.fail("tokenised twice"))
    again = token_view(catalogue, words)
    assert again.token_ids.values.tolist() == first.token_ids.values.tolist()
    assert again.truncated == first.truncated
    folders = sorted(path.name for path in (catalogue.folder / "views").iterdir())
    assert len(folders) == 1
    with pytest.raises(pytest.fail.Exception, match="tokenised twice"):
        token_view(catalogue, TextPreprocessor(words._words, max_tokens=7))


def test_pixels_are_those_of_the_pictures(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    preprocessor = ImagePreprocessor(side=5)
    monkeypatch.setattr(views, "CHUNK_BYTES", 2 * 3 * 5 * 5)
    told: list[tuple[int, int]] = []
    view = pixel_view(catalogue, preprocessor, workers=2, progress=lambda done, total: told.append((done, total)))
    assert isinstance(view, ContentSource)
    assert len(view) == 4
    assert [len(chunk) for chunk in view.chunks] == [2, 2]
    assert told == [(2, 4), (4, 4)]
    content = view.gather(np.array([3, 0, 2, 3]))
    for place, row in enumerate([3, 0, 2, 3]):
        assert np.array_equal(content.pixels[place].numpy(), preprocessor(catalogue.pictures[row]))
    assert view.gather(np.zeros(0, np.int64)).pixels.shape == (0, 3, 5, 5)


def test_pixels_go_on_where_they_stopped(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "CHUNK_BYTES", 2 * 3 * 5 * 5)
    monkeypatch.setattr(Counting, "seen", [])
    monkeypatch.setattr(Counting, "stop_after", 3)
    with pytest.raises(KeyboardInterrupt):
        pixel_view(catalogue, Counting(side=5))
    assert Counting.seen == [10, 20, 30]
    monkeypatch.setattr(Counting, "stop_after", 1000)
    view = pixel_view(catalogue, Counting(side=5))
    assert Counting.seen == [10, 20, 30, 30, 40]
    pixel_view(catalogue, Counting(side=5))
    assert len(Counting.seen) == 5
    assert view.gather(np.arange(4)).pixels[:, 0, 2, 2].tolist() == [10, 20, 30, 40]


def test_a_changed_feed_gets_new_views(tmp_path: Path, words: TextPreprocessor) -> None:
    for caption in ("red scarf", "wool dress"):
        write_feed(tmp_path / "feed", interactions=[("u", "a", 1)], captions={"a": caption}, split=None)
        view = token_view(Catalogue.load(tmp_path / "feed"), words, root=tmp_path / "views")
        assert view.token_ids[0].tolist() == words.encode([caption]).token_ids[0].tolist()
    assert len(list((tmp_path / "views").iterdir())) == 2


def test_a_feed_without_captions_or_pictures(tmp_path: Path, words: TextPreprocessor) -> None:
    catalogue = Catalogue.load(write_feed(tmp_path / "feed", interactions=[("u", "a", 1)], split=None))
    assert len(token_view(catalogue, words)) == 0
    assert len(pixel_view(catalogue, ImagePreprocessor(side=4))) == 0


def test_vectors_follow_the_items(catalogue: Catalogue, tmp_path: Path) -> None:
    path = tmp_path / "vectors.parquet"
    vectors = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    pd.DataFrame({"item_id": ["d", "unknown", "a"], "vector": vectors}).to_parquet(path)
    table = VectorTable.load(path, catalogue)
    assert isinstance(table, ContentSource)
    assert table.vector_dim == 2
    present = dict(zip("abcd", table.rows.tolist(), strict=True))
    assert (present["b"], present["c"]) == (-1, -1)
    content = table.gather(table.rows[[0, 3]])
    assert content.vectors.tolist() == [[5.0, 6.0], [1.0, 2.0]]
    assert table.hashes.shape == (len(table.vectors), 16)
    assert len({bytes(value) for value in table.hashes}) == len(table.vectors)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"item_id": ["a"], "value": [1.0]}, "columns item_id and vector"),
        ({"item_id": ["a", "a"], "vector": [[1.0], [2.0]]}, "'a' twice"),
        ({"item_id": ["a", "b"], "vector": [[1.0], [2.0, 3.0]]}, "widths \\[1, 2\\]"),
    ],
)
def test_vectors_that_cannot_be_used(
    catalogue: Catalogue, tmp_path: Path, columns: dict[str, list[object]], message: str
) -> None:
    pd.DataFrame(columns).to_parquet(tmp_path / "vectors.parquet")
    with pytest.raises(FeedError, match=message):
        VectorTable.load(tmp_path / "vectors.parquet", catalogue)


def test_vectors_that_are_not_there(catalogue: Catalogue, tmp_path: Path) -> None:
    with pytest.raises(FeedError, match="no file"):
        VectorTable.load(tmp_path / "vectors.parquet", catalogue)


def test_ids_are_present_where_training_saw_the_item() -> None:
    table = IdTable(np.array([3, 0, 1]), np.array([0.5, 0, -1], np.float32))
    assert isinstance(table, ContentSource)
    assert table.rows.tolist() == [0, -1, 2]
    content = table.gather(np.array([2, 0]))
    assert content.item_rows.tolist() == [2, 0]
    assert content.counts.tolist() == [1.0, 3.0]
    assert content.trends.tolist() == [-1.0, 0.5]
