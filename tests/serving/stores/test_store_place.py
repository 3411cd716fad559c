"""Where a store is, as ``--store`` names it."""

from __future__ import annotations

import pytest

from mmrec.errors import ConfigError
from mmrec.serving.stores.store_place import StorePlace


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("mmrec-data", "folder"),
        ("postgresql://a:b@c/d", "postgres"),
        ("qdrant+https://:key@c:6333", "qdrant"),
    ],
)
def test_places(text: str, kind: str) -> None:
    place = StorePlace.parse(text)
    assert place.kind == kind
    assert text not in repr(place)


@pytest.mark.parametrize("text", ["http://localhost:6333", "mysql://x:secret@y"])
def test_other_places_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--store") as caught:
        StorePlace.parse(text)
    assert "secret" not in str(caught.value)
