"""A post before and after it is published: what is near it, who would like it, and what each of its modalities does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from mmrec.inference.questions import Question
from mmrec.search.index import Vectors
from mmrec.serving.answers.askers import Asking
from mmrec.serving.answers.rerank import nearest_posts
from mmrec.serving.answers.searching import as_ask
from mmrec.serving.answers.service import Service
from mmrec.serving.posts.live_items import Hit
from mmrec.serving.posts.post_vectors import Content, Encoded
from mmrec.serving.posts.references import Parts, content_of
from mmrec.serving.studio.audience import Audience, Crowd
from mmrec.serving.studio.cards import Cards
from mmrec.serving.studio.schemas import Audience as AudienceNote
from mmrec.serving.studio.schemas import Card, Fan, InspectAnswer, InspectRequest, NearCard, Removed, Variant
from mmrec.serving.trace import Trace

_ROWS = 1 << 15
_Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Post:
    """A post and what is left of it without each of its modalities."""

    whole: Encoded
    without: Mapping[Removed, Vectors]


class Inspection:
    """Looks at posts.

    Args:
        service: encodes and compares.
        cards: makes cards of items.
        audience: the users who are asked.
    """

    def __init__(self, service: Service, cards: Cards, audience: Audience) -> None:
        self._service, self._cards, self._audience = service, cards, audience

    def inspect(self, request: InspectRequest, parts: Parts, trace: Trace) -> InspectAnswer:
        """Return what the model makes of a post; nothing is kept of it.

        Raises:
            ProblemError: too much waits already, or there is no time left.
            RequestError: a post that cannot be read.
        """
        post = self._read(content_of(request.caption, request.image, parts, self._service.limits), trace)
        own = "" if request.item_id is None else str(request.item_id)
        with trace.stage("search"):
            near = self._nearest(post.whole.vector, k=request.k, own=own)
            shared = {name: self._nearest(vector, k=request.k, own=own) for name, vector in post.without.items()}
        crowd = self._audience.crowd()
        with trace.stage("score"):
            variants = self._variants(post, crowd, near, shared)
        fans = self._fans(post, crowd, request.users, own, trace)
        return InspectAnswer(
            request_id=trace.request_id,
            model=self._service.model_hash,
            present=list(post.whole.present),
            published=bool(own) and self._service.items.known(own),
            items=len(self._service.items),
            nearest=self._near_cards(near),
            variants=variants,
            audience=AudienceNote(
                encoded=len(crowd.user_ids), wanted=crowd.wanted, users=self._service.histories.num_users
            ),
            fans=fans,
        )

    def _read(self, content: Content, trace: Trace) -> _Post:
        """Encode a post, and what is left of it where it has both modalities and the model reads both."""
        whole = self._encoded([content], trace)[0]
        if not {"text", "image"} <= set(whole.present):
            return _Post(whole, {})
        left: dict[Removed, Content] = {"text": replace(content, caption=None), "image": replace(content, pictures=())}
        vectors = [encoded.vector for encoded in self._encoded(list(left.values()), trace)]
        return _Post(whole, dict(zip(left, vectors, strict=True)))

    def _encoded(self, contents: Sequence[Content], trace: Trace) -> list[Encoded]:
        """Encode posts, without counting them among those that callers brought."""
        with trace.stage("decode"):
            coming = self._service.posts.start(contents, check=trace.left, until=trace.until)
        with trace.stage("encode"):
            return [trace.wait(future) for future in coming]

    def _nearest(self, vector: Vectors, *, k: int, own: str) -> list[Hit]:
        nothing = np.zeros(0, dtype=np.int64)
        question = Question(vector[None], None, nothing, nothing, 0.0)
        items = self._service.items
        return items.best(as_ask(items.exported, question, dropped=frozenset({own})), k=k)

    def _near_cards(self, hits: Sequence[Hit]) -> list[NearCard]:
        cards = self._cards.of([hit.item_id for hit in hits])
        return [
            NearCard(**card.model_dump(), rank=rank, score=hit.score)
            for rank, (card, hit) in enumerate(zip(cards, hits, strict=True), start=1)
            if card is not None
        ]

    def _variants(
        self, post: _Post, crowd: Crowd, near: Sequence[Hit], shared: Mapping[Removed, Sequence[Hit]]
    ) -> list[Variant]:
        """Measure the post, and what is left of it, against the catalogue over the whole audience."""
        whole = {hit.item_id for hit in near}
        levels = self._levels(crowd)
        found: list[tuple[Removed | None, Vectors, Sequence[Hit]]] = [(None, post.whole.vector, near)]
        found += [(name, vector, shared[name]) for name, vector in post.without.items()]
        variants = []
        for name, vector, hits in found:
            mean = float(crowd.scores(vector).mean()) if len(crowd.vectors) else None
            standing = None if levels is None or mean is None else float((levels < mean).mean())
            same = len(whole & {hit.item_id for hit in hits})
            variants.append(Variant(without=name, mean_score=mean, standing=standing, same_nearest=same))
        return variants

    def _levels(self, crowd: Crowd) -> _Scores | None:
        """Return the mean score of every exported item over the audience, shape (items,)."""
        mean = crowd.mean
        return None if mean is None else np.asarray(self._service.items.exported.full @ mean)

    def _fans(self, post: _Post, crowd: Crowd, count: int, own: str, trace: Trace) -> list[Fan]:
        """Return the users of the audience who would like a post most, as they are now, feedback included."""
        order = np.argsort(-crowd.scores(post.whole.vector), kind="stable")[:count]
        users = [str(user_id) for user_id in crowd.user_ids[order]]
        found = self._service.askers.several([(user_id, None) for user_id in users], {}, trace)
        users = [user_id for user_id, one in zip(users, found, strict=True) if isinstance(one, Asking)]
        askings = [one for one in found if isinstance(one, Asking)]
        if not askings:
            return []
        vectors = np.stack([post.whole.vector, *post.without.values()])
        scores = self._compare(np.stack([asking.vectors for asking in askings]), vectors)
        with trace.stage("score"):
            ranks = self._ranks(askings, scores[:, 0], own)
        ids = self._service.histories
        fans = [
            Fan(
                user_id=int(user) if ids.user_id_type == "integer" else user,
                score=float(scores[row, 0]),
                rank=int(ranks[row]),
                scores_without={n: float(s) for n, s in zip(post.without, scores[row, 1:], strict=True)},
                because=self._because(post.whole.vector, askings[row]),
            )
            for row, user in enumerate(users)
        ]
        return sorted(fans, key=lambda fan: -fan.score)

    def _ranks(self, askings: Sequence[Asking], scores: _Scores, own: str) -> npt.NDArray[np.int64]:
        """Return 1 + how much of what is offered scores higher for each user, shape (users,)."""
        service, bonus = self._service, np.float32(self._service.recommender.repeat_bonus)
        users = np.stack([asking.vectors for asking in askings])
        exported, view = service.items.exported, service.items.published.view()
        higher = np.zeros(len(askings), dtype=np.int64)
        had, hidden = [_ids(asking) for asking in askings], service.items.hidden_rows
        for start in range(0, len(exported), _ROWS):
            # A copy: the table is mapped read-only, which torch warns of.
            block = self._compare(users, np.array(exported.full[start : start + _ROWS], dtype=np.float32))
            stop = start + block.shape[1]
            for row, item_ids in enumerate(had):
                rows = np.array([exported.row_of(item_id) for item_id in item_ids], dtype=np.int64)
                block[row, rows[(rows >= start) & (rows < stop)] - start] += bonus
            block[:, hidden[(hidden >= start) & (hidden < stop)] - start] = -np.inf
            higher += (block > scores[:, None]).sum(axis=1)
        alive = np.flatnonzero(view.alive)
        alive = alive[~np.isin(alive, view.rows([own]))]
        if len(alive):
            block = self._compare(users, view.vectors[alive])
            for row, item_ids in enumerate(had):
                block[row, np.isin(alive, view.rows(item_ids))] += bonus
            higher += (block > scores[:, None]).sum(axis=1)
        return 1 + higher

    def _because(self, vector: Vectors, asking: Asking) -> Card | None:
        """Return the post of a user's history that is nearest in content."""
        found = [item for item_id in _ids(asking) if (item := self._service.items.remember(item_id)) is not None]
        if not found:
            return None
        dim = self._service.recommender.assembly.model.dim
        history = np.stack([item.vector[:dim] for item in found])
        places, _ = nearest_posts(vector[None, :dim], history, n=1)
        return self._cards.card(found[int(places[0, 0])])

    def _compare(self, users: Vectors, items: Vectors) -> _Scores:
        """Return scores without the repeat bonus, shape (users, items)."""
        with torch.inference_mode():
            scorer = self._service.recommender.assembly.model.scorer
            return np.array(scorer.compare(torch.from_numpy(users), torch.from_numpy(items)).numpy())


def _ids(asking: Asking) -> list[str]:
    """Return the ids of the history that counts, in a fixed order."""
    return sorted(key.removeprefix("id:") for key in asking.had if key.startswith("id:"))
