"""The attributes of a catalogue's items as an encoder takes them, each distinct combination once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from mmrec.contents import AttributeContent
from mmrec.errors import ConfigError, near_names
from mmrec.feed.catalogue import Catalogue
from mmrec.preprocessing.attributes import AttributePreprocessor
from mmrec.storage import RaggedArray, content_hash


def read_vocabulary(
    catalogue: Catalogue,
    seen: npt.NDArray[np.bool_],
    *,
    columns: Sequence[str],
    numbers: Sequence[str] | None,
    separators: Mapping[str, str],
    buckets: int,
    min_count: int,
    where: str,
) -> AttributePreprocessor:
    """Read a vocabulary off the items that training sees: whatever else there is stays unknown.

    Args:
        catalogue: the items.
        seen: shape (items,), whether training sees an item.
        columns: attribute columns.
        numbers: those of them that hold numbers or dates; None finds out.
        separators: what stands between several values of a cell, by column.
        buckets: of numbers.
        min_count: items that must have a value for it to count.
        where: config key, for messages.

    Raises:
        ConfigError: a column that the feed does not have, or that says nothing of these items.
    """
    texts = _texts(catalogue, columns, where)[seen]
    return AttributePreprocessor.fit(
        texts, numbers=numbers, separators=separators, buckets=buckets, min_count=min_count, where=where
    )


def _texts(catalogue: Catalogue, names: Sequence[str], where: str) -> pd.DataFrame:
    known = catalogue.attribute_names
    for name in names:
        if name not in known:
            place = f"{where} (feed {catalogue.folder})"
            raise ConfigError("attribute columns of the feed", got=repr(name), where=place, fix=near_names(name, known))
    return catalogue.attribute_texts(names)


@dataclass(frozen=True)
class AttributeTable:
    """Codes of attributes by combination; a :class:`~mmrec.feed.items.ContentSource`.

    Args:
        codes: one row a distinct combination, int32, ascending; no row is empty.
        rows: shape (items,), combination of each item, -1 where it has no attribute.
    """

    codes: RaggedArray
    rows: npt.NDArray[np.int64]

    @classmethod
    def read(cls, catalogue: Catalogue, preprocessor: AttributePreprocessor, *, where: str) -> AttributeTable:
        """Encode the items of a catalogue.

        Raises:
            ConfigError: the catalogue lacks a column.
        """
        return cls.of(_texts(catalogue, list(preprocessor.columns), where), preprocessor)

    @classmethod
    def of(cls, table: pd.DataFrame, preprocessor: AttributePreprocessor) -> AttributeTable:
        """Encode a table; each distinct cell is looked at once.

        Args:
            table: one text column an attribute, one row an item; None or NaN where an item has none.
            preprocessor: how.
        """
        cells = np.empty((len(table), len(table.columns)), dtype=np.int64)
        groups: list[list[tuple[int, ...]]] = []
        for column, name in enumerate(table.columns):
            places, texts = pd.factorize(table[name])
            encoded = [preprocessor.column_codes(str(name), str(text)) for text in texts]
            # Names without a code of their own are all alike, so that fewer combinations are distinct.
            group_of = {codes: group for group, codes in enumerate(dict.fromkeys([(), *encoded]))}
            cells[:, column] = np.array([group_of[codes] for codes in [*encoded, ()]], dtype=np.int64)[places]
            groups.append(list(group_of))
        distinct, rows = np.unique(cells, axis=0, return_inverse=True)
        combined = [tuple(code for own, g in zip(groups, row, strict=True) for code in own[g]) for row in distinct]
        some = np.array([len(codes) > 0 for codes in combined], dtype=bool)
        place = np.where(some, np.cumsum(some) - 1, -1)
        kept = [codes for codes in combined if codes]
        offsets = np.cumsum([0, *map(len, kept)]).astype(np.int64)
        flat = np.array([code for codes in kept for code in codes], dtype=np.int32)
        return cls(RaggedArray(flat, offsets), place[rows.reshape(-1)].astype(np.int64))

    def __len__(self) -> int:
        return len(self.codes)

    @cached_property
    def hashes(self) -> npt.NDArray[np.uint8]:
        """Content hash of every combination, shape (combinations, 16)."""
        digests = [bytes.fromhex(content_hash(self.codes[row].tobytes())) for row in range(len(self))]
        return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16)

    def gather(self, rows: npt.NDArray[np.int64]) -> AttributeContent:
        """Return the given combinations."""
        ragged = self.codes.gather(rows)
        return AttributeContent(torch.from_numpy(ragged.values.astype(np.int32)), torch.from_numpy(ragged.lengths))
