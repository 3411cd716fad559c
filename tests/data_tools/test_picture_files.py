"""Where a picture may lie: folders that are remembered give the answer that following every path anew gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.picture_files import PictureFinder
from tests.data_tools.raw_feeds import write_picture

PLACES = [
    "images/a.png",
    "images/b.png",
    "images/absent.png",
    "images/deep/a.png",
    "images/deep/../a.png",
    "images/out.png",
    "images/within.png",
    "images/loop.png",
    "away/a.png",
    "back/a.png",
    "../secret.png",
    "images/../../secret.png",
    "images/deep/..",
    "images",
    ".",
    "..",
    "nowhere/a.png",
    "images/a.png/b.png",
    "images/nul\0.png",
    "nul\0/a.png",
    "x" * 300 + ".png",
]


@pytest.fixture
def feed(tmp_path: Path) -> Path:
    """Return a feed with links inside, links that leave it, and one that comes back."""
    folder = tmp_path / "feed"
    for name in ("images/a.png", "images/b.png", "images/deep/a.png", "../secret.png", "../elsewhere/a.png"):
        write_picture(folder / name, (1, 2, 3))
    (folder / "images" / "out.png").symlink_to(tmp_path / "secret.png")
    (folder / "images" / "within.png").symlink_to("a.png")
    (folder / "images" / "loop.png").symlink_to("loop.png")
    (folder / "away").symlink_to(tmp_path / "elsewhere")
    (folder / "back").symlink_to("images/deep")
    return folder


class PatientFinder(PictureFinder):
    """Remembers nothing: follows every path from its beginning."""

    def _is_inside(self, path: Path) -> bool:
        return any(path.resolve().is_relative_to(root) for root in self._roots)


@pytest.mark.parametrize("place", PLACES)
def test_remembered_folders_change_no_answer(feed: Path, place: str) -> None:
    finder, patient = (kind(feed, feed / "images") for kind in (PictureFinder, PatientFinder))
    expected = patient.named(place, item=0, row=1)
    assert finder.named(place, item=0, row=1) == expected
    for other in PLACES:
        finder.named(other, item=0, row=1)
    assert finder.named(place, item=0, row=1) == expected


def test_links_are_followed_once_a_folder(feed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    followed: list[str] = []
    original = Path.resolve

    def counted(path: Path, strict: bool = False) -> Path:  # noqa: FBT001, FBT002 - pathlib's own signature
        followed.append(path.name)
        return original(path, strict)

    finder = PictureFinder(feed, feed / "images")
    finder.of_item("a", item=0, row=1)
    monkeypatch.setattr(Path, "resolve", counted)
    for number, name in enumerate(["b", "deep/a", "a", "within", "out"]):
        finder.of_item(name, item=number, row=number)
    assert followed == ["deep", "within.png", "out.png"]


def test_suffixes_and_another_folder(feed: Path, tmp_path: Path) -> None:
    finder = PictureFinder(feed, tmp_path / "elsewhere")
    (found,) = finder.of_item("a", item=4, row=5)
    assert (found.source, found.item, found.row) == (tmp_path / "elsewhere" / "a.png", 4, 5)
    assert finder.of_item("b", item=0, row=1) == []
    assert finder.named("images/b.png", item=0, row=1).source == feed / "images" / "b.png"
