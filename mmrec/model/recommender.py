"""The whole model: encode items, encode users, score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mmrec.batch import HistoryBatch, ItemBatch, ModelOutput, Targets, UserBatch, UserStates
from mmrec.contents import IdContent
from mmrec.host import on_device
from mmrec.model.gather import gather_plain, gather_rows, gather_sizes
from mmrec.model.item_encoder import ITEM_ID, EncodedItems, ItemEncoder, Views
from mmrec.model.late import LateShares
from mmrec.model.mean import MeanUserEncoder
from mmrec.model.scorer import Scorer
from mmrec.model.user_encoder import UserEncoder


class RecommenderModel(nn.Module):
    """Three verbs, and ``forward`` for training.

    Who comes back later may choose again what they had; within one basket nobody does.  The mean of the history
    therefore joins the state once more, by a learned weight, when the question is about a later instant.

    Args:
        item_encoder: items to vectors.
        user_encoder: histories of such vectors to states.
        scorer: vectors and states to score-ready vectors.
        contrastive_items: at most this many items of a training batch are also seen from one modality at a time.
        contrastive_modalities: the two that the contrastive loss compares; off where the model lacks one.
    """

    def __init__(
        self,
        *,
        item_encoder: ItemEncoder,
        user_encoder: UserEncoder,
        scorer: Scorer,
        contrastive_items: int = 0,
        contrastive_modalities: tuple[str, str] = ("text", "image"),
    ) -> None:
        super().__init__()
        assert item_encoder.dim == scorer.dim
        self.item_encoder = item_encoder
        self.user_encoder = user_encoder
        self._habits = MeanUserEncoder()
        self.scorer = scorer
        self.dim, self.width = scorer.dim, scorer.width
        self.late = LateShares(item_encoder.modalities)
        self.revisit = nn.Parameter(torch.full((scorer.dim,), 0.5))
        self.contrastive_modalities = contrastive_modalities
        comparable = all(name in item_encoder.modalities for name in contrastive_modalities)
        self.contrastive_items = contrastive_items if comparable else 0

    def encode_items(self, items: ItemBatch) -> Float[Tensor, "items width"]:
        """Return score-ready vectors of distinct items."""
        plain, alone = self.encode_alone(items, tuple(self.late.chosen()))
        return self.scorer.calibrated(self.with_late(plain, alone), item_signals(items))

    def encode_alone(
        self, items: ItemBatch, modalities: Sequence[str] = ()
    ) -> tuple[Float[Tensor, "items width"], dict[str, Float[Tensor, "items width"]]]:
        """Return vectors of distinct items without anything that validation chooses, as training compares them.

        Args:
            items: what to encode.
            modalities: those whose own vectors are returned too; an item without one has its whole vector there.
        """
        fused, alone = self.item_encoder.encode_alone(items, modalities)
        return self.scorer.item_vectors(fused), {name: self.scorer.item_vectors(own) for name, own in alone.items()}

    def with_late(
        self, plain: Float[Tensor, "items width"], alone: Mapping[str, Float[Tensor, "items width"]]
    ) -> Float[Tensor, "items width"]:
        """Return the vectors of items with the chosen share of what each modality alone gives."""
        shares = self.late.chosen()
        if not shares:
            return plain
        return self.scorer.mean([plain, *(alone[name] for name in shares)], [1.0, *shares.values()])

    def encode_users(self, users: UserBatch, item_embeddings: Float[Tensor, "items width"]) -> UserStates:
        """Return score-ready vectors of users, after the whole history and after each slot of it.

        Args:
            users: histories as positions in ``item_embeddings``.
            item_embeddings: what ``encode_items`` returned.
        """
        states, habits = self._states(users, item_embeddings)
        states = self.scorer.user_vectors(states + self.revisit * habits)
        stranger = self.scorer.stranger_vector().expand(len(users), 1, -1)
        vectors = torch.cat([stranger.to(states.dtype), states], dim=1)
        last = users.valid.sum(dim=1)
        vectors = vectors[torch.arange(len(users), device=last.device), last]
        return UserStates(vectors=vectors.unsqueeze(1), states=states, valid=users.valid)

    def score(
        self, users: UserStates, item_embeddings: Float[Tensor, "candidates width"]
    ) -> dict[str, Float[Tensor, "users candidates"]]:
        """Return the scores of every candidate for every user, by action."""
        scores: dict[str, Tensor] = self.scorer(users, item_embeddings)
        return scores

    def forward(self, batch: HistoryBatch) -> ModelOutput:
        """Encode the batch's distinct items once; give each target the user vector that predicts it.

        Where several ranks share the batch, each encodes its own items and all of them get all vectors.
        """
        ranks = 1 if batch.share is None else len(batch.share.sizes)
        compare = self.contrastive_modalities if self.training and self.contrastive_items else ()
        limit = -(-self.contrastive_items // ranks)
        encoded = self.item_encoder.encode(batch.items, compare=compare, most_compared=limit)
        item_embeddings, views = self.scorer.item_vectors(encoded.vectors), encoded.views
        if batch.share is not None:
            item_embeddings = gather_rows(item_embeddings, batch.share.sizes)
            views = gather_views(encoded, compare)
        states, habits = self._states(batch.users, item_embeddings)
        return ModelOutput(
            item_embeddings=item_embeddings,
            target_vectors=self._target_vectors(states, habits, batch.targets),
            views={name: functional.normalize(vectors, dim=1, eps=1e-6) for name, vectors in views.vectors.items()},
            view_contents=views.contents,
        )

    def _states(
        self, users: UserBatch, item_embeddings: Float[Tensor, "items width"]
    ) -> tuple[Float[Tensor, "users time dim"], Float[Tensor, "users time dim"]]:
        """Return the states, and the mean of each slot's history, both with coordinates about one."""
        if not users.valid.numel():
            nothing = item_embeddings.new_zeros(*users.valid.shape, self.dim)
            return nothing, nothing
        vectors = functional.embedding(users.item_positions, self.scorer.content(item_embeddings))
        states: Tensor = self.user_encoder(users, vectors)
        return states, self._habits(users, vectors)

    def _target_vectors(
        self, states: Float[Tensor, "users time dim"], habits: Float[Tensor, "users time dim"], targets: Targets
    ) -> Float[Tensor, "targets width"]:
        """Pick the predicting states; ``time_index`` -1 means "no history yet"."""
        num_users, time, dim = states.shape
        slots = targets.user_index * time + targets.time_index.clamp(min=0)
        chosen = functional.embedding(slots, states.reshape(num_users * time, dim))
        again = self.revisit * functional.embedding(slots, habits.reshape(num_users * time, dim))
        chosen = self.scorer.user_vectors(chosen + ~targets.together.unsqueeze(1) * again)
        known = (targets.time_index >= 0).unsqueeze(1)
        return torch.where(known, chosen, self.scorer.stranger_vector().to(chosen.dtype))


def gather_views(encoded: EncodedItems, modalities: Sequence[str]) -> Views:
    """Return the views of all ranks; a rank that compares nothing takes part all the same."""
    if not modalities:
        return encoded.views
    own, device = encoded.views, encoded.vectors.device
    none = encoded.vectors[:0], torch.zeros(0, dtype=torch.long, device=device)
    sizes = gather_sizes(len(own.vectors[modalities[0]]) if own.vectors else 0, device=device)
    if not sum(sizes):
        return own
    return Views(
        vectors={name: gather_rows(own.vectors.get(name, none[0]), sizes) for name in modalities},
        contents={name: gather_plain(own.contents.get(name, none[1]), sizes) for name in modalities},
    )


def item_signals(items: ItemBatch) -> Float[Tensor, "items 2"]:
    """Return how far each item's popularity rose of late, and 1 for those that training saw; 0 and 0 for others."""
    signals = torch.zeros(len(items), 2, device=items.item_rows.device)
    part = items.parts.get(ITEM_ID)
    if part is None:
        return signals
    assert isinstance(part.content, IdContent)
    rows, contents = on_device(signals.device, part.item_index, part.content_index)
    trends = part.content.trends[contents]
    return signals.index_copy(0, rows, torch.stack([trends, torch.ones_like(trends)], dim=1))
