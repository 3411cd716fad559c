"""Items as a page shows them."""

from __future__ import annotations

from collections.abc import Sequence

from mmrec.serving.answers.service import Service
from mmrec.serving.posts.live_items import Item
from mmrec.serving.posts.references import Parts
from mmrec.serving.problems import ProblemError
from mmrec.serving.studio.schemas import Card, CardsAnswer, CardsRequest
from mmrec.serving.trace import Trace


class Cards:
    """Makes cards.

    Args:
        service: what has the items.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    def answer(self, request: CardsRequest, parts: Parts, trace: Trace) -> CardsAnswer:
        """Return the cards of some items; unknown ones are left out.

        Raises:
            ProblemError: too many.
        """
        limit = self._service.limits.k
        if len(request.items) > limit:
            raise ProblemError(422, f"at most {limit} items", got=str(len(request.items)), where="items")
        return CardsAnswer(request_id=trace.request_id, results=self.some([str(item_id) for item_id in request.items]))

    def some(self, item_ids: Sequence[str]) -> list[Card]:
        """Return the cards of those of some ids that something has or had."""
        return [card for card in self.of(item_ids) if card is not None]

    def of(self, item_ids: Sequence[str]) -> list[Card | None]:
        """Return the card of each id, None where nothing ever had it."""
        found = [self._service.items.remember(item_id) for item_id in item_ids]
        return [None if item is None else self.card(item) for item in found]

    def card(self, item: Item) -> Card:
        """Return the card of an item."""
        items, catalogue = self._service.items, self._service.catalogue
        post = item.published
        has_picture = len(catalogue.item_images[item.row]) > 0 if post is None else "image" in post.present
        return Card(
            item_id=items.external(item.item_id),
            caption=items.caption(item),
            picture=has_picture,
            published=post is not None,
            offered=post is not None or items.known(item.item_id),
        )
