"""The map of the catalogue: the export's own, or one that the service makes when somebody first looks."""

from __future__ import annotations

import threading
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

from mmrec.errors import near_names
from mmrec.inference.projection import Projection, project
from mmrec.serving.answers.service import Service
from mmrec.serving.problems import ProblemError
from mmrec.serving.studio.schemas import MapAnswer, MapQuery
from mmrec.serving.trace import Trace

MOST = 20_000
"""Points of an answer; of a larger catalogue a sample, always the same."""
GROUPS = 9
_FEW, _MANY = 2, 60


class CatalogueMap:
    """Answers with points.

    Args:
        service: has the items and, where it was exported, their map.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._made: Projection | None = None
        self._lock = threading.Lock()

    def answer(self, query: MapQuery, trace: Trace) -> MapAnswer:
        """Return the map of what is offered of the export.

        Raises:
            ProblemError: an attribute that cannot colour it.
        """
        names = self._attributes
        if query.colour and query.colour not in names:
            raise ProblemError(
                422,
                "an attribute of few values",
                got="another name",
                where="colour",
                fix=near_names(query.colour, names),
            )
        colour = query.colour or (names[0] if names else "")
        exported, items = self._service.items.exported, self._service.items
        projection = self._projection()
        rows = np.sort(np.random.default_rng(0).permutation(len(exported))[:MOST])
        rows = rows[~np.isin(rows, items.hidden_rows)]
        group, groups = self._groups(colour)
        points = np.asarray(projection.points[rows])
        return MapAnswer(
            request_id=trace.request_id,
            method=projection.method,
            sample=projection.sample,
            exported=exported.projection is not None,
            items=len(exported),
            shown=len(rows),
            item_ids=[items.external(exported.item_ids[row]) for row in rows],
            x=points[:, 0].tolist(),
            y=points[:, 1].tolist(),
            group=group[rows].tolist(),
            groups=groups,
            colour=colour,
            attributes=names,
        )

    def _projection(self) -> Projection:
        exported = self._service.items.exported
        if exported.projection is not None:
            return exported.projection
        with self._lock:
            if self._made is None:
                self._made = project(exported.full, has_bias=self._service.recommender.has_bias, method="PCA")
            return self._made

    @cached_property
    def _attributes(self) -> list[str]:
        """Attributes with few values, those with the fewest first."""
        table, names = self._service.items.exported.table, self._service.items.exported.attributes
        counts = {name: table[name].map(str).nunique() for name in names}
        few = [name for name in names if _FEW <= counts[name] <= _MANY]
        return sorted(few, key=lambda name: (counts[name] > GROUPS, counts[name]))

    def _groups(self, colour: str) -> tuple[npt.NDArray[np.int64], list[str]]:
        """Return the group of every item, and the groups' names: the most frequent values, then everything else."""
        count = len(self._service.items.exported)
        if not colour:
            return np.zeros(count, dtype=np.int64), ["all"]
        values = self._service.items.exported.table[colour]
        text = values.map(lambda value: "none" if value is None or value is pd.NA else str(value))
        frequent = list(text.value_counts(sort=True).index[:GROUPS])
        places = {value: place for place, value in enumerate(frequent)}
        return text.map(lambda value: places.get(value, len(frequent))).to_numpy(np.int64), [*frequent, "other"]
