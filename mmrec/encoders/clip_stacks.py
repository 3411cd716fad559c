"""The networks of open_clip as stacks of blocks: its text transformer, its vision transformer and its ResNet."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mmrec.encoders.image import map_to_tokens, tokens_to_map
from mmrec.encoders.patches import multiply_patches
from mmrec.encoders.tuning import Layers
from mmrec.errors import ConfigError


class _TextTower(nn.Module):
    """The modules of a pair that read text, without those that read pictures."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.token_embedding = cast("nn.Embedding", tower.token_embedding)
        self.positional_embedding = cast("nn.Parameter", tower.positional_embedding)
        self.transformer = cast("nn.Module", tower.transformer)
        self.ln_final = cast("nn.Module", tower.ln_final)
        causal = tower.attn_mask
        self.register_buffer("attn_mask", causal if isinstance(causal, Tensor) else None, persistent=False)


class OpenClipTextStack:
    """open_clip's text transformer: states after the final norm, before pooling and projection.

    A causal transformer's real tokens never see what follows them, so a caption needs no padding to the context
    length.  One that attends to its padding gets captions whose padding was kept as text, and needs no mask either.

    Args:
        tower: module that holds the token embedding, the transformer and the final norm.
        context_length: longest text in tokens.
    """

    def __init__(self, tower: nn.Module, *, context_length: int) -> None:
        self._tower = _TextTower(tower)
        blocks = cast("nn.ModuleList", self._tower.transformer.resblocks)
        self.layers = Layers(self._tower, tuple(blocks), (self._tower.ln_final,))
        self.dim = int(self._tower.token_embedding.embedding_dim)
        self.max_tokens = context_length
        heads = cast("nn.MultiheadAttention", blocks[0].attn).num_heads
        self._heads = int(heads)

    def below(
        self, token_ids: Int[Tensor, "batch time"], valid: Bool[Tensor, "batch time"] | None, *, stop: int
    ) -> Float[Tensor, "batch time dim"]:
        """Run the embeddings and the first ``stop`` blocks, and the final norm when these are all."""
        tower = self._tower
        states = tower.token_embedding(token_ids) + tower.positional_embedding[: token_ids.shape[1]]
        states = self._blocks(states, valid, start=0, stop=stop)
        return cast("Tensor", tower.ln_final(states)) if stop == len(self.layers.blocks) else states

    def above(
        self, states: Float[Tensor, "batch time dim"], valid: Bool[Tensor, "batch time"] | None, *, start: int
    ) -> Float[Tensor, "batch time dim"]:
        """Run the blocks from ``start`` on and the final norm."""
        states = self._blocks(states, valid, start=start, stop=len(self.layers.blocks))
        return cast("Tensor", self._tower.ln_final(states))

    def probe(self, tokens: int) -> Int[Tensor, "batch time"]:
        """Return the token ids 1, 2, ..., shape (1, tokens)."""
        count = min(tokens, self.max_tokens)
        return torch.arange(1, count + 1, device=self._tower.positional_embedding.device).unsqueeze(0)

    def _blocks(
        self,
        states: Float[Tensor, "batch time dim"],
        valid: Bool[Tensor, "batch time"] | None,
        *,
        start: int,
        stop: int,
    ) -> Float[Tensor, "batch time dim"]:
        causal = cast("Tensor | None", self._tower.attn_mask)
        time = states.shape[1]
        mask = None
        if causal is not None:
            mask = causal[:time, :time].to(states.dtype)
        elif valid is not None:
            hidden = torch.zeros_like(valid, dtype=states.dtype).masked_fill(~valid, float("-inf"))
            mask = hidden[:, None, :].expand(-1, time, -1).repeat_interleave(self._heads, dim=0)
        for block in self.layers.blocks[start:stop]:
            states = block(states, attn_mask=mask)
        return states


class OpenClipVitStack:
    """open_clip's vision transformer: class token and patches after the final norm, before pooling and projection.

    Args:
        visual: an ``open_clip.transformer.VisionTransformer``; its patches are multiplied from then on.
        side: side of its pictures in pixels.

    Raises:
        ConfigError: a network that pools by attention before its final norm.
    """

    def __init__(self, visual: nn.Module, *, side: int) -> None:
        if getattr(visual, "attn_pool", None) is not None:
            raise ConfigError(
                "an image half without attention pooling", got=type(visual).__name__, where="encoders (open_clip)"
            )
        multiply_patches(visual)
        self._visual = visual
        self._norm = cast("nn.Module", visual.ln_post)
        self._embed = cast("Callable[[Tensor], Tensor]", visual._embeds)
        transformer = cast("nn.Module", visual.transformer)
        self.layers = Layers(visual, tuple(cast("nn.ModuleList", transformer.resblocks)), (self._norm,))
        self.dim = int(cast("int", transformer.width))
        self.side = side
        self.class_token = True
        self.maps = False

    def below(self, pixels: Float[Tensor, "batch 3 height width"], *, stop: int) -> Float[Tensor, "batch tokens inner"]:
        """Run the patch embedding and the first ``stop`` blocks, and the final norm when these are all."""
        tokens = self._embed(pixels)
        for block in self.layers.blocks[:stop]:
            tokens = block(tokens)
        return cast("Tensor", self._norm(tokens)) if stop == len(self.layers.blocks) else tokens

    def above(self, tokens: Float[Tensor, "batch tokens inner"], *, start: int) -> Float[Tensor, "batch patches dim"]:
        """Run the blocks from ``start`` on and the final norm."""
        for block in self.layers.blocks[start:]:
            tokens = block(tokens)
        return cast("Tensor", self._norm(tokens))


class ResNetStack:
    """open_clip's ResNet: its last feature map, before attention pooling.

    Args:
        visual: an ``open_clip.modified_resnet.ModifiedResNet``.
        side: side of its pictures in pixels.
    """

    def __init__(self, visual: nn.Module, *, side: int) -> None:
        self._stem = cast("Callable[[Tensor], Tensor]", visual.stem)
        stages = tuple(cast("nn.Module", getattr(visual, f"layer{number}")) for number in range(1, 5))
        self.layers = Layers(visual, stages)
        self.dim = int(stages[-1][-1].bn3.num_features)  # type: ignore[index]
        self.side = side
        self.class_token = False
        self.maps = True

    def below(self, pixels: Float[Tensor, "batch 3 height width"], *, stop: int) -> Float[Tensor, "batch tokens inner"]:
        """Run the stem and the first ``stop`` stages."""
        states = self._stem(pixels)
        for stage in self.layers.blocks[:stop]:
            states = stage(states)
        return map_to_tokens(states)

    def above(self, tokens: Float[Tensor, "batch tokens inner"], *, start: int) -> Float[Tensor, "batch patches dim"]:
        """Run the stages from ``start`` on."""
        states = tokens_to_map(tokens)
        for stage in self.layers.blocks[start:]:
            states = stage(states)
        return map_to_tokens(states)
