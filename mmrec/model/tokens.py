"""Tokens of items: every token of every part of an item, without copying what items share.

Projection to the model's width happens once per distinct content token.  Items refer to these tokens by position, so
one gather serves captions, patches and several pictures alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from mmrec.batch import Parts
from mmrec.contents import TokenStates
from mmrec.encoders.base import mean_tokens
from mmrec.host import on_device, ragged_places
from mmrec.model.dropout import drop
from mmrec.model.parts import presence
from mmrec.movable import Movable

EPSILON = 1e-5
BLOCK_ITEMS, BLOCK_ITEMS_ON_DEVICE, MOST_BLOCKS = 256, 2048, 8
"""Items of a block, about, and blocks at most: each block is one more round of small kernels, which a device has worked
off, padding and all, before the host has started them."""


@dataclass(frozen=True)
class TokenBlock:
    """Items of similar size, their tokens side by side.

    Args:
        items: shape (rows,), which items these are; on the CPU.
        states: shape (rows, tokens, dim).
        valid: shape (rows, tokens), False at padding; every item has a valid token.
    """

    items: Int[Tensor, " rows"]
    states: Float[Tensor, "rows tokens dim"]
    valid: Bool[Tensor, "rows tokens"]

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True)
class ItemTokens(Movable):
    """Projected tokens of a batch's distinct contents, and which of them each item has.

    All but ``states`` and ``summaries`` is on the CPU.

    Args:
        states: shape (total, dim), tokens end to end; the last one is the null token.
        modality: shape (total,), which modality each token is of, -1 for the null token.
        index: shape (references,), positions in ``states``: those of the first item, then those of the second, ...
        counts: shape (items,), references of each item, at least one: an item with nothing has the null token.
        summaries: shape (items, modalities, dim), each modality's normalised mean; zero where absent.
        present: shape (items, modalities).
    """

    on_host = frozenset({"modality", "index", "counts", "present"})
    states: Float[Tensor, "total dim"]
    modality: Int[Tensor, " total"]
    index: Int[Tensor, " references"]
    counts: Int[Tensor, " items"]
    summaries: Float[Tensor, "items modalities dim"]
    present: Bool[Tensor, "items modalities"]

    def __len__(self) -> int:
        return len(self.counts)

    def view(self, rows: Int[Tensor, " rows"], *, modality: int) -> ItemTokens:
        """Return the chosen items as if ``modality`` were all they have, over the same states."""
        places, owners = ragged_places(self.counts, rows)
        index = self.index.index_select(0, places)
        chosen = self.modality[index] == modality
        index, counts = _with_null(owners[chosen], index[chosen], num_items=len(rows), null=len(self.states) - 1)
        only = torch.arange(self.present.shape[1]) == modality
        chosen_rows, kept = on_device(self.summaries.device, rows, only)
        return replace(
            self,
            index=index,
            counts=counts,
            summaries=self.summaries.index_select(0, chosen_rows) * kept.unsqueeze(-1),
            present=self.present.index_select(0, rows) & only,
        )

    def joined(self, others: Sequence[ItemTokens]) -> ItemTokens:
        """Return these items and then those of others over the same states, so that one pass fuses them all."""
        if not others:
            return self
        assert all(other.states is self.states for other in others)
        every = (self, *others)
        return replace(
            self,
            index=torch.cat([tokens.index for tokens in every]),
            counts=torch.cat([tokens.counts for tokens in every]),
            summaries=torch.cat([tokens.summaries for tokens in every]),
            present=torch.cat([tokens.present for tokens in every]),
        )

    def blocks(self) -> list[TokenBlock]:
        """Return all items in blocks of similar size, the smallest first: with one block half would be padding."""
        order = self.counts.argsort(stable=True)
        counts = self.counts.index_select(0, order)
        starts = (self.counts.cumsum(0) - self.counts).index_select(0, order)
        size = BLOCK_ITEMS if self.states.device.type == "cpu" else BLOCK_ITEMS_ON_DEVICE
        groups = min(max(len(self) // size, 1), MOST_BLOCKS)
        items = order.tensor_split(groups)
        planned = [
            self._places(*both) for both in zip(starts.tensor_split(groups), counts.tensor_split(groups), strict=True)
        ]
        width = self.states.shape[1]
        sent = on_device(self.states.device, *(tensor for both in planned for tensor in both))
        return [
            TokenBlock(rows, self.states.index_select(0, places.flatten()).view(*places.shape, width), valid)
            for rows, places, valid in zip(items, sent[::2], sent[1::2], strict=True)
        ]

    def _places(
        self, starts: Int[Tensor, " rows"], counts: Int[Tensor, " rows"]
    ) -> tuple[Int[Tensor, "rows tokens"], Bool[Tensor, "rows tokens"]]:
        """Return where the tokens of a block's rows are, and which of its slots are no padding."""
        columns = torch.arange(int(counts[-1]) if len(counts) else 1)
        valid = columns < counts.unsqueeze(1)
        # Padding repeats an item's first token, so that nothing undefined is ever computed.
        return self.index[starts.unsqueeze(1) + columns.where(valid, 0)], valid


def _with_null(
    owners: Int[Tensor, " real"], index: Int[Tensor, " real"], *, num_items: int, null: int
) -> tuple[Int[Tensor, " references"], Int[Tensor, " items"]]:
    """Give the null token to items without any, or their attention would be of nothing; return index and counts.

    Args:
        owners: shape (real,), the item of each reference, ascending.
        index: shape (real,), what is referred to.
        num_items: items.
        null: position of the null token.
    """
    counts = torch.bincount(owners, minlength=num_items)
    bare = counts == 0
    if not bool(bare.any()):
        return index, counts
    moved = torch.arange(len(index)) + bare.cumsum(0).index_select(0, owners)
    filled = torch.full((len(index) + int(bare.sum()),), null).index_copy(0, moved, index)
    return filled, counts.clamp(min=1)


class TokenProjection(nn.Module):
    """One modality's tokens to the model's width: normalise, centre, scale, project, name the modality.

    Encoders differ in scale by orders of magnitude, hence the normalisation (LayerNorm without weights).  Frozen
    features share a large common direction that hides what differs; ``calibrate`` measures it and takes it out.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, *, input_dim: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dim, input_dim) / input_dim**0.5)
        self.name = nn.Parameter(torch.zeros(dim))
        self.register_buffer("shift", torch.zeros(input_dim))
        self.register_buffer("scale", torch.ones(input_dim))

    def forward(self, tokens: TokenStates) -> TokenStates:
        """Project tokens, shape (total, input_dim), to (total, dim)."""
        states = tokens.states.to(self.weight.dtype)
        # W LayerNorm(x) = (W - mean(W)) x / std(x): the wide normalised copy is never made nor kept for backward.
        weight = self.weight * self.scale
        centred = weight - weight.mean(dim=1, keepdim=True)
        square = torch.linalg.vector_norm(states, dim=1).square() / states.shape[1]
        variance = (square - states.mean(dim=1).square()).clamp(min=0)
        rate = (variance + EPSILON).rsqrt().unsqueeze(1)
        projected = torch.addcmul(self.name - weight @ self.shift, functional.linear(states, centred), rate)
        return TokenStates(states=projected, lengths=tokens.lengths)

    def calibrate(self, tokens: TokenStates) -> None:
        """Measure mean and spread of the contents' normalised means; spread is relative, its mean stays one."""
        states = functional.layer_norm(tokens.states.to(self.weight.dtype), self.shift.shape, eps=EPSILON)
        means = mean_tokens(TokenStates(states=states, lengths=tokens.lengths))
        if len(means) < 2:
            return
        spread = means.std(dim=0)
        self.shift.copy_(means.mean(dim=0))
        self.scale.copy_(spread.mean() / spread.clamp(min=0.1 * float(spread.mean()) + EPSILON))


class TokenAssembler(nn.Module):
    """Encoded contents to the token blocks of items.

    Args:
        input_dims: width of each modality's tokens, in the order of the ``modalities`` axis.
        dim: the model's width.
        dropout: share of a content's channels that are hidden in a training step, the same for all of its tokens, so
            that a post is not learnt by heart from its features.
    """

    def __init__(self, *, input_dims: Mapping[str, int], dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.modalities = tuple(input_dims)
        self.projections = nn.ModuleDict(
            {name: TokenProjection(input_dim=width, dim=dim) for name, width in input_dims.items()}
        )
        self.null = nn.Parameter(torch.randn(dim))

    def projection(self, modality: str) -> TokenProjection:
        """Return one modality's projection."""
        return cast("TokenProjection", self.projections[modality])

    def forward(self, parts: Mapping[str, Parts], encoded: Mapping[str, TokenStates], *, num_items: int) -> ItemTokens:
        """Project, summarise and index.

        Args:
            parts: what each modality contributes; a modality without parts may be missing.
            encoded: tokens of the distinct contents of every modality in ``parts``.
            num_items: items of the batch.
        """
        null, names = self.null, self.modalities
        tokens = {name: self._hide(self.projection(name)(encoded[name])) for name in names if name in parts}
        blank = null.new_zeros(num_items, len(null))
        summaries = [
            self._summary(name, tokens[name], parts[name], num_items) if name in parts else blank for name in names
        ]
        ordered = [(code, name) for code, name in enumerate(names) if name in parts]
        codes = [torch.full((len(tokens[name].states),), code) for code, name in ordered]
        index, counts = _references(
            [parts[name] for _, name in ordered], [tokens[name].lengths for _, name in ordered], num_items
        )
        return ItemTokens(
            states=torch.cat([*(tokens[name].states for _, name in ordered), null.unsqueeze(0)]),
            modality=torch.cat([*codes, torch.full((1,), -1)]),
            index=index,
            counts=counts,
            summaries=torch.stack(summaries, dim=1),
            present=presence(parts, names, num_items),
        )

    def _hide(self, tokens: TokenStates) -> TokenStates:
        if not self.training or not self.dropout:
            return tokens
        kept = drop(tokens.states.new_ones(len(tokens), tokens.states.shape[1]), self.dropout)
        (owner,) = on_device(kept.device, torch.repeat_interleave(tokens.lengths))
        return TokenStates(states=tokens.states * kept.index_select(0, owner), lengths=tokens.lengths)

    def _summary(self, name: str, tokens: TokenStates, parts: Parts, num_items: int) -> Float[Tensor, "items dim"]:
        means = mean_tokens(tokens) - self.projection(name).name
        numbers = torch.bincount(parts.item_index, minlength=num_items).unsqueeze(1)
        items, contents, counts = on_device(means.device, parts.item_index, parts.content_index, numbers)
        rows = functional.embedding(contents, means)
        total = rows.new_zeros(num_items, rows.shape[1]).index_add(0, items, rows)
        mean = total / counts.clamp(min=1).to(total.dtype)
        return functional.layer_norm(mean, mean.shape[1:], eps=EPSILON) * (counts > 0)


def _references(
    parts: Sequence[Parts], lengths: Sequence[Tensor], num_items: int
) -> tuple[Int[Tensor, " references"], Int[Tensor, " items"]]:
    """Position in the concatenation of all modalities' tokens of every token of every part of every item."""
    nothing = torch.zeros(0, dtype=torch.int64)
    every_length = torch.cat([nothing, *lengths])
    first_content, items, contents = 0, [nothing], [nothing]
    for part, length in zip(parts, lengths, strict=True):
        items.append(part.item_index)
        contents.append(part.content_index + first_content)
        first_content += len(length)
    item, content = torch.cat(items), torch.cat(contents)
    order = item.argsort(stable=True)
    positions, owner = ragged_places(every_length, content[order])
    return _with_null(item[order][owner], positions, num_items=num_items, null=int(every_length.sum()))
