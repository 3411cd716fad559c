"""Which pair is to answer: what an operator chose, kept in the store for restarts and for other workers."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from mmrec.inference.export import VectorFolder
from mmrec.serving.stores.store import Store
from mmrec.storage import content_hash

SETTING = "model"
"""Name under which the store keeps it."""


@dataclass(frozen=True)
class Names:
    """What a pair is called.

    Args:
        run: name of the run's folder.
        vectors: name of the export's folder.
        feed: name of the folder of its prepared feed; None for the one that the service was started with, or else the
            one that the export names.
    """

    run: str
    vectors: str
    feed: str | None = None


@dataclass(frozen=True)
class Choice:
    """A pair that was chosen.

    Args:
        names: of the pair; None for the one that the service was started with.
        token: of this choice, other than that of every other, for a folder may come to hold something else.
        base: tells the pair that the service was started with; a choice made beside another one counts no more.
    """

    names: Names | None
    token: str
    base: str

    def record(self, store: Store) -> None:
        """Keep it in the store.

        Raises:
            StoreFailureError: it was not kept.
        """
        store.set_setting(SETTING, json.dumps(asdict(self)))

    @classmethod
    def recorded(cls, store: Store, *, base: str) -> Choice | None:
        """Return what was last chosen beside a pair; None where nothing was, or beside another pair."""
        text = store.setting(SETTING)
        values = json.loads(text) if text else {}
        if values.get("base") != base:
            return None
        return cls(Names(**values["names"]) if values["names"] else None, values["token"], base)


UNCHOSEN = Choice(None, "", "")
"""The pair that the service was started with."""


def base_of(vectors: Path) -> str:
    """Return what tells a pair from others, read off its export.

    Raises:
        ArtifactError: no export.
    """
    folder = VectorFolder.open(vectors)
    return content_hash(folder.model_hash, str(folder.manifest["feed_hash"]))
