"""Items to vectors: each distinct content through its encoder once, fused, plus what the item's id adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mmrec.batch import ItemBatch, Parts
from mmrec.contents import IdContent, TokenStates, read_content
from mmrec.encoders.base import BlockEncoder, ContentEncoder
from mmrec.host import on_device
from mmrec.model.fusion import Fusion
from mmrec.model.parts import draw_dropped, first_contents, presence, slice_parts, without
from mmrec.model.tokens import ItemTokens, TokenAssembler

ITEM_ID = "item_id"
"""Modality whose content is the item's own number; it joins after fusion."""


@dataclass(frozen=True)
class Views:
    """The same items from one modality at a time.

    Args:
        vectors: modality to shape (pairs, dim).
        contents: modality to shape (pairs,), the distinct content each row shows (the first, of several pictures).
    """

    vectors: Mapping[str, Tensor] = field(default_factory=dict)
    contents: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class EncodedItems:
    """Item vectors, and some of the items from one modality at a time.

    Args:
        vectors: shape (items, dim), before the scorer's normalisation.
        views: empty where none were asked for or no item has both modalities.
    """

    vectors: Float[Tensor, "items dim"]
    views: Views


class ItemEncoder(nn.Module):
    """Encode distinct items from whatever each of them has.

    Args:
        encoders: modality to content encoder; ``item_id`` names the one that takes ``IdContent``.
        fusion: tokens to vectors; may be None where ``item_id`` is the only modality.
        dim: width of item vectors.
        id_dropout: share of items whose id is hidden in a training step; an item with nothing else keeps its id.
        id_gate: ``frequency`` lets the id's weight depend on how often training saw the item; ``always`` is one.
        modality_dropout: share of items with several content modalities that lose one in a training step.
        feature_dropout: share of a content's channels that are hidden in a training step.
        items_at_once: keep the activations of this many items at most in a training step and compute the others anew
            in the backward pass; 0 keeps all.

    Attributes:
        in_step: modalities whose encoder runs in every pass, content or not, in the order of all modalities: all ranks
            put its sharded blocks together at once.
    """

    def __init__(
        self,
        *,
        encoders: Mapping[str, nn.Module],
        fusion: Fusion | None,
        dim: int,
        id_dropout: float = 0.0,
        id_gate: Literal["frequency", "always"] = "frequency",
        modality_dropout: float = 0.0,
        feature_dropout: float = 0.0,
        items_at_once: int = 0,
    ) -> None:
        super().__init__()
        self.dim, self.id_dropout, self.modality_dropout = dim, id_dropout, modality_dropout
        self.items_at_once = items_at_once
        self.in_step: tuple[str, ...] = ()
        self.encoders = nn.ModuleDict(encoders)
        self.modalities = tuple(name for name in encoders if name != ITEM_ID)
        assert (fusion is None) == (not self.modalities), "fusion is for content modalities"
        self.fusion = fusion
        self.assembler: TokenAssembler | None = None
        if self.modalities:
            widths = {name: self.encoder(name).dim for name in self.modalities}
            self.assembler = TokenAssembler(input_dims=widths, dim=dim, dropout=feature_dropout)
        self.id_projection: nn.Module | None = None
        self.id_gate: FrequencyGate | None = None
        if ITEM_ID in encoders:
            id_dim = self.encoder(ITEM_ID).dim
            self.id_projection = nn.Identity() if id_dim == dim else nn.Linear(id_dim, dim, bias=False)
            if id_gate == "frequency" and self.modalities:
                self.id_gate = FrequencyGate(num_modalities=len(self.modalities))
        self.unknown = None if self.modalities else nn.Parameter(torch.randn(dim) * dim**-0.5)

    def encoder(self, modality: str) -> ContentEncoder:
        """Return one modality's encoder."""
        return cast("ContentEncoder", self.encoders[modality])

    def forward(self, items: ItemBatch) -> Float[Tensor, "items dim"]:
        """Return the items' vectors."""
        return self.encode(items).vectors

    def encode(self, items: ItemBatch, *, compare: tuple[str, ...] = (), most_compared: int = 0) -> EncodedItems:
        """Return the items' vectors, and views of some of them.

        Args:
            items: distinct items.
            compare: modalities; items that have them all are fused once more from each alone.  Nothing is encoded or
                projected again.
            most_compared: at most this many items, drawn at random.
        """
        parts = self._visible_parts(items)
        chosen = self._draw_compared(parts, items, compare, most_compared)
        seen = compare if len(chosen) else ()
        vectors, *alone = self._encode(parts, dict.fromkeys(seen, chosen), num_items=len(items))
        contents = on_device(vectors.device, *(first_contents(parts[name], chosen) for name in seen))
        return EncodedItems(
            vectors=vectors,
            views=Views(vectors=dict(zip(seen, alone, strict=True)), contents=dict(zip(seen, contents, strict=True))),
        )

    def encode_alone(
        self, items: ItemBatch, modalities: Sequence[str]
    ) -> tuple[Float[Tensor, "items dim"], dict[str, Float[Tensor, "items dim"]]]:
        """Return the items' vectors, and what each of some modalities alone gives, without the id.

        Nothing is encoded or projected again.  An item that lacks a modality has its whole vector there.
        """
        parts = self._visible_parts(items)
        shown = [name for name in modalities if name in parts]
        present = presence(parts, shown, len(items))
        rows = {name: present[:, column].nonzero()[:, 0] for column, name in enumerate(shown)}
        vectors, *alone = self._encode(parts, rows, num_items=len(items))
        places = on_device(vectors.device, *rows.values())
        found = dict.fromkeys(modalities, vectors)
        for name, place, own in zip(rows, places, alone, strict=True):
            found[name] = vectors.index_copy(0, place, own)
        return vectors, found

    def _encode(
        self, parts: Mapping[str, Parts], shown: Mapping[str, Int[Tensor, " rows"]], *, num_items: int
    ) -> tuple[Tensor, ...]:
        """Return the vectors of all items, and of the items ``shown`` from each modality alone.

        Whatever the batch lacks takes part with no weight, so that processes with other batches stay in step.
        """
        if self.items_at_once and num_items > self.items_at_once and torch.is_grad_enabled():
            vectors, *alone = self._fuse_in_turn(parts, shown, num_items=num_items)
        else:
            vectors, *alone = self._fuse(parts, shown, num_items)
        idle = [p for module in self._idle_modules(parts) for p in module.parameters() if p.requires_grad]
        if self.training and idle:
            vectors = vectors + _zero_weight(idle).to(vectors.dtype)
        return (vectors, *alone)

    def _fuse(
        self, parts: Mapping[str, Parts], shown: Mapping[str, Int[Tensor, " rows"]], num_items: int
    ) -> tuple[Tensor, ...]:
        """Return the vectors of all items, shape (items, dim), and those of the items shown from each modality alone."""
        blanks: list[Tensor] = []
        if self.assembler is None or self.fusion is None:
            assert self.unknown is not None
            (no_id,) = on_device(self.unknown.device, ~presence(parts, (ITEM_ID,), num_items))
            tokens, alone, vectors = None, [], no_id * self.unknown
        else:
            content = {name: parts[name] for name in self.modalities if name in parts}
            encoded: dict[str, TokenStates] = {}
            for name in self.modalities:
                if name in content:
                    encoded[name] = self.encoder(name)(read_content(content[name].content))
                elif name in self.in_step:
                    encoder = cast("BlockEncoder", self.encoders[name])
                    blanks.append(encoder(encoder.blank()).states)
            tokens = self.assembler(content, encoded, num_items=num_items)
            views = [tokens.view(rows, modality=self.modalities.index(name)) for name, rows in shown.items()]
            fused = self.fusion(tokens.joined(views))
            vectors, *alone = torch.split(fused, [len(part) for part in (tokens, *views)])
        if ITEM_ID in parts:
            vectors = vectors + self._id_residual(parts[ITEM_ID], tokens, num_items=num_items)
        for states in blanks:
            vectors = vectors + 0 * states.sum().to(vectors.dtype)
        return (vectors, *alone)

    def _fuse_in_turn(
        self, parts: Mapping[str, Parts], shown: Mapping[str, Int[Tensor, " rows"]], *, num_items: int
    ) -> tuple[Tensor, ...]:
        """As ``_fuse``, but only the vectors are kept: the backward pass computes each slice of items once more.

        The gradient is that of the whole batch, in the memory of one slice (gradient caching, Gao et al. 2021).  A
        content that items of two slices share is encoded in both.
        """

        def again(anchor: Tensor, *given: object) -> tuple[Tensor, ...]:
            return self._fuse(*given)  # type: ignore[arg-type]

        # Random numbers of the devices of the tensors that it is given are what ``checkpoint`` draws alike twice, and all
        # else here is on the CPU.
        found, anchor = [], next(self.parameters())
        for start in range(0, num_items, self.items_at_once):
            stop = min(start + self.items_at_once, num_items)
            inside = {name: rows[(rows >= start) & (rows < stop)] - start for name, rows in shown.items()}
            piece = slice_parts(parts, start=start, stop=stop, num_items=num_items)
            found.append(checkpoint(again, anchor, piece, inside, stop - start, use_reentrant=False))
        return tuple(torch.cat(column) for column in zip(*found, strict=True))

    def _draw_compared(
        self, parts: Mapping[str, Parts], items: ItemBatch, modalities: tuple[str, ...], limit: int
    ) -> Int[Tensor, " pairs"]:
        """Draw items, ascending, that have all of some modalities; none where no modality is asked for."""
        if not modalities:
            return torch.zeros(0, dtype=torch.long)
        both = presence(parts, modalities, len(items)).all(dim=1).nonzero()[:, 0]
        return both[torch.randperm(len(both))[:limit]].sort().values

    @torch.no_grad()
    def calibrate(self, items: ItemBatch) -> None:
        """Measure mean and spread of each modality's features on a sample of items, once, before training.

        Optional: without it features are only normalised.  A few hundred items of the training part are enough.
        """
        training = self.training
        self.eval()
        for name in self.modalities:
            if name in items.parts and self.assembler is not None:
                encoded = self.encoder(name)(read_content(items.parts[name].content))
                self.assembler.projection(name).calibrate(encoded)
        self.train(training)

    def _visible_parts(self, items: ItemBatch) -> dict[str, Parts]:
        """Parts after the dropout of modalities and ids, which happens here so that what is hidden is not encoded.

        Lots are drawn on the host, which has to know how much is left.
        """
        parts = {name: part for name, part in items.parts.items() if name in self.encoders and len(part.item_index)}
        if not self.training:
            return parts
        present = presence(parts, self.modalities, len(items))
        hidden: dict[str, Bool[Tensor, " items"]] = {}
        if self.modality_dropout and len(self.modalities) > 1:
            noise = torch.rand(len(items), len(self.modalities) + 1)
            dropped = draw_dropped(present, share=self.modality_dropout, noise=noise)
            hidden |= {name: dropped[:, code] for code, name in enumerate(self.modalities)}
        if self.id_dropout and self.modalities:
            hidden[ITEM_ID] = (torch.rand(len(items)) < self.id_dropout) & present.any(dim=1)
        left = {name: without(part, hidden[name]) if name in hidden else part for name, part in parts.items()}
        return {name: part for name, part in left.items() if part is not None}

    def _idle_modules(self, parts: Mapping[str, Parts]) -> list[nn.Module]:
        """Return what this batch does not use because nobody in it has such content."""
        names = [name for name in self.encoders if name not in parts]
        idle: list[nn.Module | None] = [self.encoders[name] for name in names if name not in self.in_step]
        if self.assembler is not None:
            idle += [self.assembler.projection(name) for name in names if name != ITEM_ID]
        if ITEM_ID in names:
            idle += [self.id_projection, self.id_gate]
        return [module for module in idle if module is not None]

    def _id_residual(self, parts: Parts, tokens: ItemTokens | None, *, num_items: int) -> Float[Tensor, "items dim"]:
        """Return what the ids add; exactly zero for items without one."""
        assert isinstance(parts.content, IdContent)
        assert self.id_projection is not None
        rows: Tensor = self.id_projection(self.encoder(ITEM_ID)(parts.content).states)
        items, contents = on_device(rows.device, parts.item_index, parts.content_index)
        rows = functional.embedding(contents, rows)
        if self.id_gate is not None and tokens is not None:
            counts = parts.content.counts[contents].to(rows.dtype)
            (present,) = on_device(rows.device, tokens.present[parts.item_index])
            rows = rows * self.id_gate(counts, present).unsqueeze(1)
        return rows.new_zeros(num_items, self.dim).index_add(0, items, rows)


class FrequencyGate(nn.Module):
    """How much an item's id is trusted: more, the more often training saw the item.

    At the start an id seen once weighs 0.24, twenty times 0.5, five hundred times 0.83.
    """

    def __init__(self, *, num_modalities: int) -> None:
        super().__init__()
        self.linear = nn.Linear(1 + num_modalities, 1)
        with torch.no_grad():
            self.linear.weight.zero_()
            self.linear.weight[0, 0] = 0.5
            self.linear.bias.fill_(-1.5)

    def forward(
        self, counts: Float[Tensor, " parts"], present: Bool[Tensor, "parts modalities"]
    ) -> Float[Tensor, " parts"]:
        """Return weights between zero and one."""
        inputs = torch.cat([counts.log1p().unsqueeze(1), present.to(counts.dtype)], dim=1)
        return torch.sigmoid(self.linear(inputs)).squeeze(1)


def _zero_weight(parameters: list[nn.Parameter]) -> Float[Tensor, ""]:
    """Zero that depends on every parameter: workers that lack a modality still agree on the gradients."""
    return 0 * torch.stack([p.sum() for p in parameters]).sum()
