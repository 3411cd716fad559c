"""What the page asks of one model."""

from __future__ import annotations

from mmrec.serving.answers.service import Service
from mmrec.serving.studio.audience import Audience
from mmrec.serving.studio.cards import Cards
from mmrec.serving.studio.catalogue_map import CatalogueMap
from mmrec.serving.studio.inspection import Inspection
from mmrec.serving.studio.people import People
from mmrec.serving.studio.thumbnails import Thumbnails


class StudioParts:
    """Answers to the page; what is slow to make is made when it is first asked for.

    Args:
        service: of that model.
    """

    def __init__(self, service: Service) -> None:
        self.cards, self.maps, self.thumbnails = Cards(service), CatalogueMap(service), Thumbnails(service)
        self.people = People(service, self.cards)
        self.inspection = Inspection(service, self.cards, Audience(service))
