"""A training step as the field takes it: every slot of every padded history is encoded, duplicates and padding too.

IDvs.MoRec and MicroLens collate ``(users, length + 1, 2)`` contents: each position's item and one sampled negative.
All of them pass the encoders, padding as well, whether or not an item is there twice.  A causal
transformer of one vector a slot predicts the next item; the loss is the binary cross entropy of positive and negative.
PMMRec and IISAN encode ``(users, length + 1)`` contents and take the batch's other items as negatives (``in_batch``).
Captions are padded to the longest allowed.  Each modality is one vector (first token; mean of patches), and the two are
joined by a linear layer.  (Source: the training scripts that these projects publish.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Negatives = Literal["one", "in_batch"]
Encode = Callable[[Tensor], Tensor]


class PaddedModel(nn.Module):
    """One vector a slot from both encoders, then a causal transformer.

    Args:
        encode_text: token ids, shape (slots, tokens), to vectors.
        encode_image: pixels, shape (slots, 3, side, side), to vectors.
        text_dim: width of caption vectors.
        image_dim: width of picture vectors.
        dim: the model's width.
        length: slots of a history.
    """

    def __init__(
        self, encode_text: Encode, encode_image: Encode, *, text_dim: int, image_dim: int, dim: int, length: int
    ) -> None:
        super().__init__()
        self._encode_text, self._encode_image = encode_text, encode_image
        self.join = nn.Linear(text_dim + image_dim, dim)
        self.positions = nn.Embedding(length, dim)
        layer = nn.TransformerEncoderLayer(dim, 4, 4 * dim, dropout=0.1, batch_first=True, norm_first=True)
        self.users = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, token_ids: Tensor, pixels: Tensor, *, users: int, negatives: Negatives) -> Tensor:
        """Return the loss.

        Args:
            token_ids: shape (users * slots, tokens); slots are ``length + 1``, twice that with one negative each.
            pixels: shape (users * slots, 3, side, side), uint8.
            users: rows of the batch.
            negatives: which loss.
        """
        vectors = self.join(torch.cat([self._encode_text(token_ids), self._encode_image(pixels)], dim=1))
        slots = vectors.view(users, -1, vectors.shape[1])
        chosen, others = slots.chunk(2, dim=1) if negatives == "one" else (slots, slots)
        inputs = chosen[:, :-1] + self.positions.weight
        causal = nn.Transformer.generate_square_subsequent_mask(inputs.shape[1], device=inputs.device)
        states = self.users(inputs, mask=causal, is_causal=True)
        if negatives == "one":
            above = (states * chosen[:, 1:]).sum(-1)
            below = (states * others[:, :-1]).sum(-1)
            ones = torch.ones_like(above)
            return functional.binary_cross_entropy_with_logits(
                above, ones
            ) + functional.binary_cross_entropy_with_logits(below, 0 * ones)
        scores = states.flatten(0, 1) @ chosen[:, 1:].flatten(0, 1).T
        return functional.cross_entropy(scores, torch.arange(len(scores), device=scores.device))
