"""Keys: shown once, kept as hashes, scoped."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from mmrec.errors import ConfigError
from mmrec.serving.http.keys import KeyRing, create_key


def test_a_new_key_is_found_and_its_text_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    first, second = create_key(path, name="feed-ranker", scope="read"), create_key(path, name="studio", scope="write")
    ring = KeyRing.load(path)
    found = [ring.find(text) for text in (first, second)]
    assert [(key.name, key.scope) for key in found if key] == [("feed-ranker", "read"), ("studio", "write")]
    assert ring.find(first[:-1]) is None
    assert ring.find("\udcff") is None
    assert first not in path.read_text()
    assert first != second
    assert len(first) > 40
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_scopes_include_the_ones_before(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    for scope in ("read", "write", "admin"):
        create_key(path, name=scope, scope=scope)  # type: ignore[arg-type]
    read, write, admin = KeyRing.load(path).keys
    assert [key.allows("read") for key in (read, write, admin)] == [True, True, True]
    assert [key.allows("write") for key in (read, write, admin)] == [False, True, True]
    assert [key.allows("admin") for key in (read, write, admin)] == [False, False, True]


@pytest.mark.parametrize("name", ["", "a b", 'a"b', "a\nb", "x" * 65, "../x"])
def test_unusable_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="--name"):
        create_key(tmp_path / "keys.toml", name=name, scope="read")
    assert not (tmp_path / "keys.toml").exists()


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    create_key(tmp_path / "keys.toml", name="a", scope="read")
    before = (tmp_path / "keys.toml").read_text()
    with pytest.raises(ConfigError, match="no key has yet"):
        create_key(tmp_path / "keys.toml", name="a", scope="write")
    assert (tmp_path / "keys.toml").read_text() == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"\[\[keys\]\]"),
        ("keys = 3", r"\[\[keys\]\]"),
        ("keys = [3]", "key 1"),
        ("[[keys", "a TOML file"),
        ('[[keys]]\nname = "a"\nscope = "all"\nhash = "sha256:00"', "a scope"),
        ('[[keys]]\nname = "a"\nscope = "read"\nhash = "sha256:00"', "a hash"),
        ('[[keys]]\nname = "a"\nscope = "read"\nhash = "plain"', "a hash"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "keys.toml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        KeyRing.load(tmp_path / "keys.toml")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mmrec keys create"):
        KeyRing.load(tmp_path / "keys.toml")
