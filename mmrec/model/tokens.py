"""Token blocks of items: every token of every part of an item, side by side, without copying what items share.

Projection to the model's width happens once per distinct content token.  Items refer to these tokens by position, so
one gather serves captions, patches and several pictures alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from mmrec.batch import Movable, Parts, TokenStates
from mmrec.encoders.base import mean_tokens

EPSILON = 1e-5


@dataclass(frozen=True)
class ItemTokens(Movable):
    """Projected tokens of a batch's distinct contents, and which of them each item has.

    Args:
        states: shape (total, dim), tokens end to end; the last one is the null token.
        modality: shape (total,), which modality each token is of, -1 for the null token.
        index: shape (items, tokens), positions in ``states``; the null token where not valid.
        valid: shape (items, tokens).  An item with nothing has the null token as its only valid one.
        summaries: shape (items, modalities, dim), each modality's normalised mean; zero where absent.
        present: shape (items, modalities).
        contents: shape (items, modalities), the first distinct content the item shows, -1 where absent.
    """

    states: Float[Tensor, "total dim"]
    modality: Int[Tensor, " total"]
    index: Int[Tensor, "items tokens"]
    valid: Bool[Tensor, "items tokens"]
    summaries: Float[Tensor, "items modalities dim"]
    present: Bool[Tensor, "items modalities"]
    contents: Int[Tensor, "items modalities"]

    def __len__(self) -> int:
        return len(self.index)

    def view(self, rows: Int[Tensor, " rows"], *, modality: int) -> ItemTokens:
        """Return the chosen items as if ``modality`` were all they have.  Nothing is encoded again."""
        index = self.index.index_select(0, rows)
        chosen = self.valid.index_select(0, rows) & (self.modality[index] == modality)
        positions, owners = index[chosen], chosen.nonzero()[:, 0]
        local = torch.arange(len(positions), device=rows.device)
        index = token_block(owners, local, num_items=len(rows), null=len(positions))
        only = torch.arange(self.present.shape[1], device=rows.device) == modality
        return ItemTokens(
            states=torch.cat([functional.embedding(positions, self.states), self.states[-1:]]),
            modality=torch.cat([self.modality[positions], self.modality[-1:]]),
            index=index,
            valid=_valid(index, null=len(positions)),
            summaries=self.summaries.index_select(0, rows) * only.unsqueeze(-1),
            present=self.present.index_select(0, rows) & only,
            contents=self.contents.index_select(0, rows).where(only, -1),
        )


def token_block(
    owners: Int[Tensor, " references"], positions: Int[Tensor, " references"], *, num_items: int, null: int
) -> Int[Tensor, "items tokens"]:
    """Lay ragged references to tokens out as a block, padded with the null token; at least one column.

    Args:
        owners: shape (references,), the item of each reference, ascending.
        positions: shape (references,), the token it refers to.
        num_items: rows of the block.
        null: position of the null token.
    """
    counts = torch.bincount(owners, minlength=num_items)
    starts = counts.cumsum(0) - counts
    width = max(1, int(counts.max())) if num_items else 1
    columns = torch.arange(len(owners), device=owners.device) - starts[owners]
    index = positions.new_full((num_items, width), null)
    index[owners, columns] = positions
    return index


def _valid(index: Int[Tensor, "items tokens"], *, null: int) -> Bool[Tensor, "items tokens"]:
    """Everything but padding; an item with nothing keeps one null token, or its attention would be of nothing."""
    real = index != null
    real[:, 0] = True
    return real


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
        contents = torch.stack([_first_contents(parts.get(name), num_items, null.device) for name in names], dim=1)
        ordered = [(code, name) for code, name in enumerate(names) if name in parts]
        index = _index([parts[name] for _, name in ordered], [tokens[name].lengths for _, name in ordered], blank)
        codes = [torch.full((len(tokens[name].states),), code, device=null.device) for code, name in ordered]
        return ItemTokens(
            states=torch.cat([*(tokens[name].states for _, name in ordered), null.unsqueeze(0)]),
            modality=torch.cat([*codes, torch.full((1,), -1, device=null.device)]),
            index=index,
            valid=_valid(index, null=sum(len(code) for code in codes)),
            summaries=torch.stack(summaries, dim=1),
            present=contents >= 0,
            contents=contents,
        )

    def _hide(self, tokens: TokenStates) -> TokenStates:
        if not self.training or not self.dropout:
            return tokens
        kept = functional.dropout(tokens.states.new_ones(len(tokens), tokens.states.shape[1]), self.dropout)
        owner = torch.repeat_interleave(torch.arange(len(tokens), device=kept.device), tokens.lengths)
        return TokenStates(states=tokens.states * kept.index_select(0, owner), lengths=tokens.lengths)

    def _summary(self, name: str, tokens: TokenStates, parts: Parts, num_items: int) -> Float[Tensor, "items dim"]:
        means = mean_tokens(tokens) - self.projection(name).name
        rows = functional.embedding(parts.content_index, means)
        total = rows.new_zeros(num_items, rows.shape[1]).index_add(0, parts.item_index, rows)
        counts = torch.bincount(parts.item_index, minlength=num_items).unsqueeze(1)
        mean = total / counts.clamp(min=1).to(total.dtype)
        return functional.layer_norm(mean, mean.shape[1:], eps=EPSILON) * (counts > 0)


def _first_contents(parts: Parts | None, num_items: int, device: torch.device) -> Int[Tensor, " items"]:
    """Return each item's first content, -1 where it has none."""
    items = torch.arange(num_items, device=device)
    if parts is None or not len(parts.item_index):
        return torch.full_like(items, -1)
    first = torch.searchsorted(parts.item_index, items).clamp(max=len(parts.item_index) - 1)
    return parts.content_index[first].where(parts.item_index[first] == items, -1)


def _index(
    parts: Sequence[Parts], lengths: Sequence[Tensor], blank: Float[Tensor, "items dim"]
) -> Int[Tensor, "items tokens"]:
    """Position in the concatenation of all modalities' tokens of every token of every part of every item."""
    nothing = torch.zeros(0, dtype=torch.int64, device=blank.device)
    every_length = torch.cat([nothing, *lengths])
    content_starts = every_length.cumsum(0) - every_length
    first_content, items, contents = 0, [nothing], [nothing]
    for part, length in zip(parts, lengths, strict=True):
        items.append(part.item_index)
        contents.append(part.content_index + first_content)
        first_content += len(length)
    item, content = torch.cat(items), torch.cat(contents)
    order = item.argsort(stable=True)
    item, content = item[order], content[order]
    part_length = every_length[content]
    owner = torch.repeat_interleave(part_length)
    part_starts = part_length.cumsum(0) - part_length
    within = torch.arange(len(owner), device=blank.device) - part_starts[owner]
    positions = content_starts[content[owner]] + within
    return token_block(item[owner], positions, num_items=len(blank), null=int(every_length.sum()))
