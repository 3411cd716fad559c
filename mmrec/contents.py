"""Distinct contents, as encoders take them and give them: captions, pictures, vectors, attributes, ids, token states.

Ragged like everything that travels between rooms (see :mod:`mmrec.batch`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from jaxtyping import Float, Int, UInt8
from torch import Tensor

from mmrec.host import on_device, ragged_places
from mmrec.movable import Movable


@dataclass(frozen=True)
class TextContent(Movable):
    """Token ids of distinct captions, end to end; special tokens included.

    Args:
        token_ids: shape (total,), row after row.
        lengths: shape (contents,), tokens of each caption, all >= 1; on the CPU.
    """

    on_host = frozenset({"lengths"})
    token_ids: Int[Tensor, " total"]
    lengths: Int[Tensor, " contents"]

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True)
class ImageContent(Movable):
    """Distinct pictures as an encoder wants them before normalisation.

    Args:
        pixels: shape (contents, 3, height, width), uint8 RGB.
    """

    pixels: UInt8[Tensor, "contents 3 height width"]

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True)
class VectorContent(Movable):
    """Distinct precomputed vectors.

    Args:
        vectors: shape (contents, vector_dim).
    """

    vectors: Float[Tensor, "contents vector_dim"]

    def __len__(self) -> int:
        return len(self.vectors)


@dataclass(frozen=True)
class AttributeContent(Movable):
    """Codes of distinct combinations of attributes, end to end.

    Args:
        codes: shape (total,), row after row, ascending within a row; each column has a range of codes of its own.  On
            the CPU, and the lengths too.
        lengths: shape (contents,), codes of each combination, all >= 1.
    """

    on_host = frozenset({"codes", "lengths"})
    codes: Int[Tensor, " total"]
    lengths: Int[Tensor, " contents"]

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True)
class IdContent(Movable):
    """Known items by row number.

    Args:
        item_rows: shape (contents,), all >= 0.
        counts: shape (contents,), how often training saw each item, all >= 1.
        trends: shape (contents,), how far each item's popularity rose of late, a logarithm; 0 where unknown.
    """

    item_rows: Int[Tensor, " contents"]
    counts: Float[Tensor, " contents"]
    trends: Float[Tensor, " contents"]

    def __len__(self) -> int:
        return len(self.item_rows)


@dataclass(frozen=True)
class TokenStates(Movable):
    """Token vectors of distinct contents, end to end: an encoder's output, or its trunk's.

    Args:
        states: shape (total, dim).
        lengths: shape (contents,), tokens of each content, all >= 1; on the CPU.
    """

    on_host = frozenset({"lengths"})
    states: Float[Tensor, "total dim"]
    lengths: Int[Tensor, " contents"]

    def __len__(self) -> int:
        return len(self.lengths)


Content = TextContent | ImageContent | VectorContent | AttributeContent | IdContent | TokenStates
"""What an encoder takes: raw content, or ``TokenStates`` when its trunk has already run."""


@dataclass(frozen=True)
class StoredContent(Movable):
    """Distinct contents that lie on the device already, so that only their row numbers have to travel.

    Args:
        store: all contents of a feed, whatever their number format; never copied.
        rows: shape (contents,), which of them these are; on the CPU.
    """

    on_host = frozenset({"store", "rows"})
    store: Content
    rows: Int[Tensor, " contents"]

    def __len__(self) -> int:
        return len(self.rows)

    def read(self) -> Content:
        """Return the contents themselves; token states in float32."""
        content = take(self.store, self.rows)
        return replace(content, states=content.states.float()) if isinstance(content, TokenStates) else content


def read_content(content: Content | StoredContent) -> Content:
    """Return what an encoder takes."""
    return content.read() if isinstance(content, StoredContent) else content


def take(content: Content, rows: Int[Tensor, " chosen"]) -> Content:
    """Return some of the contents, in the order given; ``rows`` is on the CPU wherever the contents are."""

    def gather(values: Tensor, places: Tensor) -> Tensor:
        return values.index_select(0, *on_device(values.device, places))

    match content:
        case ImageContent():
            return ImageContent(pixels=gather(content.pixels, rows))
        case VectorContent():
            return VectorContent(vectors=gather(content.vectors, rows))
        case IdContent():
            (there,) = on_device(content.item_rows.device, rows)
            return content.map(lambda column: column.index_select(0, there))
        case TextContent():
            places, _ = ragged_places(content.lengths, rows)
            return TextContent(gather(content.token_ids, places), content.lengths.index_select(0, rows))
        case AttributeContent():
            places, _ = ragged_places(content.lengths, rows)
            return AttributeContent(content.codes.index_select(0, places), content.lengths.index_select(0, rows))
        case TokenStates():
            places, _ = ragged_places(content.lengths, rows)
            return TokenStates(gather(content.states, places), content.lengths.index_select(0, rows))
