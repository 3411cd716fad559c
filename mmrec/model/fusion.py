"""Fusion: the tokens of an item's modalities to one vector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mmrec.host import on_device
from mmrec.model.dropout import Dropout
from mmrec.model.tokens import ItemTokens, TokenBlock


@runtime_checkable
class Fusion(Protocol):
    """Tokens of items to item vectors of norm about one.

    An item's vector depends on that item's own tokens only: not on the other items of the batch, nor on padding, nor
    on the order of its pictures.  An item with nothing gets a finite vector.
    """

    def __call__(self, tokens: ItemTokens) -> Tensor:
        """Return the items' vectors, shape (items, dim)."""
        ...


class BottleneckFusion(nn.Module):
    """Gated summaries, to which a few latent tokens add what they read from all tokens by cross-attention.

    At the start the vector is the mean of the normalised, projected summaries, so that the similarity of frozen
    features is there from the first step; both residual branches grow from near zero.  After the attention bottleneck
    of Perceiver (Jaegle et al., 2021) and MBT (Nagrani et al., 2021).

    Args:
        dim: width.
        num_modalities: size of the modality axis of the tokens.
        num_latents: latent tokens.
        num_layers: layers of cross-attention and feed-forward.
        num_heads: attention heads.
        dropout: dropout on each branch.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_modalities: int,
        num_latents: int = 4,
        num_layers: int = 1,
        num_heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.base = GatedSummary(dim=dim, num_modalities=num_modalities, dropout=dropout)
        self.latents = nn.Parameter(torch.randn(num_latents, dim))
        self.context = nn.Linear(dim, dim)
        self.layers = nn.ModuleList(
            BottleneckLayer(dim=dim, num_heads=num_heads, dropout=dropout) for _ in range(num_layers)
        )
        self.latent_norm = nn.LayerNorm(dim)
        self.readout = nn.Linear(num_latents * dim, dim)
        _start_small(self.readout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: ItemTokens) -> Float[Tensor, "items dim"]:
        """Return the items' vectors."""
        base, blocks = self.base(tokens), tokens.blocks()
        items = torch.cat([block.items for block in blocks])
        order, back = on_device(base.device, items, items.argsort())
        # Each item asks with what its summaries already say, so that a caption decides which patches are read.
        latents = self.latents + self.context(base.index_select(0, order)).unsqueeze(1)
        for layer in self.layers:
            latents = layer(latents, blocks)
        read = self.readout(self.latent_norm(latents).flatten(1)).index_select(0, back)
        vectors: Tensor = self.norm(base + read)
        return vectors / math.sqrt(vectors.shape[1])


class ConcatFusion(nn.Module):
    """Summaries side by side, zeros where missing, and presence flags, through a perceptron.

    Args:
        dim: width.
        num_modalities: size of the modality axis of the tokens.
        dropout: dropout on the hidden layer.
    """

    def __init__(self, *, dim: int, num_modalities: int, dropout: float = 0.0) -> None:
        super().__init__()
        width = num_modalities * (dim + 1)
        self.linear = nn.Linear(width, dim)
        with torch.no_grad():
            # The start is the mean of the summaries, as with the bottleneck, so that the two compare fairly.
            summaries = torch.eye(dim).repeat(1, num_modalities) / num_modalities
            self.linear.weight.copy_(torch.cat([summaries, self.linear.weight[:, num_modalities * dim :]], dim=1))
        self.hidden = Perceptron(input_dim=width, hidden_dim=2 * dim, dim=dim, dropout=dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: ItemTokens) -> Float[Tensor, "items dim"]:
        """Return the items' vectors."""
        (present,) = on_device(tokens.summaries.device, tokens.present)
        flags = present.to(tokens.summaries.dtype)
        inputs = torch.cat([tokens.summaries.flatten(1), flags], dim=1)
        vectors: Tensor = self.norm(self.linear(inputs) + self.hidden(inputs))
        return vectors / math.sqrt(vectors.shape[1])


class GatedSummary(nn.Module):
    """Summaries of the modalities an item has, weighted by dimension and by presence pattern, plus a perceptron."""

    def __init__(self, *, dim: int, num_modalities: int, dropout: float) -> None:
        super().__init__()
        self.gate = nn.Linear(num_modalities, num_modalities * dim)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)
        self.empty = nn.Parameter(torch.randn(dim))
        self.hidden = Perceptron(input_dim=num_modalities * (dim + 1), hidden_dim=2 * dim, dim=dim, dropout=dropout)

    def forward(self, tokens: ItemTokens) -> Float[Tensor, "items dim"]:
        """Return shape (items, dim), coordinates about one."""
        summaries = tokens.summaries
        (present,) = on_device(summaries.device, tokens.present)
        flags = present.to(summaries.dtype)
        logits: Tensor = self.gate(flags).view_as(summaries)
        logits = logits.masked_fill(~present.unsqueeze(-1), torch.finfo(logits.dtype).min)
        base = (logits.softmax(dim=1) * summaries).sum(dim=1) + ~present.any(dim=1, keepdim=True) * self.empty
        joint = self.hidden(torch.cat([summaries.flatten(1), flags], dim=1))
        return torch.add(base, joint)


class BottleneckLayer(nn.Module):
    """Latents read tokens, then think: pre-norm cross-attention and feed-forward.

    There are far fewer latents than tokens, so each head's key and value maps are applied on the side of the latents:
    a query k' = K'q meets tokens as they are, and what is read of them passes V.  That is the same function with
    less arithmetic, and one copy of the tokens instead of keys and values.
    """

    def __init__(self, *, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.query_norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.output = nn.Linear(dim, dim)
        self.hidden_norm = nn.LayerNorm(dim)
        self.hidden = Perceptron(input_dim=dim, hidden_dim=2 * dim, dim=dim, dropout=dropout)
        self.dropout = Dropout(dropout)

    def forward(
        self, latents: Float[Tensor, "items latents dim"], blocks: Sequence[TokenBlock]
    ) -> Float[Tensor, "items latents dim"]:
        """Return the latents after one layer.

        Args:
            latents: one row an item, in the order of the blocks.
            blocks: all items' tokens.
        """
        key, value = self.key_value.weight.view(2, self.num_heads, self.head_dim, -1)
        queries: Tensor = self.query(self.query_norm(latents))
        queries = queries.view(*queries.shape[:2], self.num_heads, self.head_dim)
        queries = torch.einsum("ilhd,hde->ilhe", queries, key).flatten(1, 2)
        parts = zip(blocks, torch.split(queries, [len(block) for block in blocks]), strict=True)
        read = torch.cat([self._read(part, block) for block, part in parts])
        read = read.view(*latents.shape[:2], self.num_heads, latents.shape[2])
        # A key's bias moves all scores of a query alike, so it does nothing; a value's passes, for weights sum to one.
        values = torch.einsum("ilhe,hde->ilhd", read, value).flatten(2) + self.key_value.bias.chunk(2)[1]
        latents = latents + self.dropout(self.output(values))
        return torch.add(latents, self.hidden(self.hidden_norm(latents)))

    def _read(self, queries: Float[Tensor, "rows queries dim"], block: TokenBlock) -> Float[Tensor, "rows queries dim"]:
        """Average tokens by how well they answer each query."""
        tokens = block.states.unsqueeze(1)
        mask = block.valid[:, None, None, :].expand(-1, 1, queries.shape[1], -1)
        read: Tensor = functional.scaled_dot_product_attention(
            queries.unsqueeze(1), tokens, tokens, attn_mask=mask, scale=self.head_dim**-0.5
        )
        return read.squeeze(1)


class Perceptron(nn.Module):
    """One gated hidden layer (GEGLU: Shazeer, 2020), whose products are what conjunctions of modalities need.

    Its output starts small: it is a residual branch that grows.
    """

    def __init__(self, *, input_dim: int, hidden_dim: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Linear(input_dim, 2 * hidden_dim)
        self.outer = nn.Linear(hidden_dim, dim)
        self.dropout = Dropout(dropout)
        _start_small(self.outer)

    def forward(self, inputs: Float[Tensor, "*rows input_dim"]) -> Float[Tensor, "*rows dim"]:
        """Apply to the last axis."""
        hidden, gate = self.inner(inputs).chunk(2, dim=-1)
        outputs: Tensor = self.dropout(self.outer(hidden * functional.gelu(gate)))
        return outputs


def _start_small(linear: nn.Linear) -> None:
    """Make outputs about 0.2 for inputs of about one, whatever the width."""
    nn.init.normal_(linear.weight, std=0.2 / math.sqrt(linear.in_features))
    nn.init.zeros_(linear.bias)
