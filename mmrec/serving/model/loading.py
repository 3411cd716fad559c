"""Pairs to services: the one that a process was started with, those that are named later, and which comes first."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from mmrec.assembly import Meter, Notify, ignore, silent_meter
from mmrec.errors import MmrecError
from mmrec.serving.answers.service import Service
from mmrec.serving.model.catalogue_index import OpenIndex
from mmrec.serving.model.choice import Choice, Names, base_of
from mmrec.serving.model.exported import Pair, load_pair
from mmrec.serving.model.model_folder import ModelFolder, Places
from mmrec.serving.model.swapping import Models
from mmrec.serving.stores.store import Store

_LOG = logging.getLogger("mmrec.serving")


@dataclass(frozen=True)
class Loader:
    """Makes services of pairs.

    Args:
        given: the pair that the process is started with.
        folder: where others come from; None where there are none.
        device: where to compute.
        open_index: opens what finds candidates.
        serve: makes a service of what was loaded.
    """

    given: Places
    folder: ModelFolder | None
    device: str
    open_index: OpenIndex
    serve: Callable[[Pair], Service]

    def first(self, store: Store, *, notify: Notify = ignore, meter: Meter = silent_meter) -> tuple[Service, Choice]:
        """Return a service of the pair that is to answer at first, and which that is.

        That is what was last switched to, for a restart is no rollback; but where the process is started with another
        pair than then, whoever did that wants that pair.  A pair that cannot be loaded any more keeps nobody from
        answering with the given one.

        Raises:
            ArtifactError: the given pair is none.
        """
        given = Choice(None, "", base_of(self.given.vectors))
        chosen = None if self.folder is None else Choice.recorded(store, base=given.base)
        if chosen is not None and chosen.names is not None:
            try:
                return self.load(chosen.names, notify=notify, meter=meter), chosen
            except MmrecError as error:
                notify(f"{chosen.names.run} and {chosen.names.vectors}, switched to earlier, cannot be loaded: {error}")
        return self.load(None, notify=notify, meter=meter), given

    def load(self, names: Names | None, *, notify: Notify = _LOG.info, meter: Meter = silent_meter) -> Service:
        """Return a service of a pair by its names, None for the given one.

        Raises:
            ArtifactError: no run or no export, or two that do not belong together.
            ProblemError: nothing of these names.
        """
        if names is None:
            places = self.given
        else:
            assert self.folder is not None
            places = self.folder.places(names)
        pair = load_pair(
            places.run,
            places.vectors,
            feed=places.feed,
            device=self.device,
            open_index=self.open_index,
            notify=notify,
            meter=meter,
        )
        return self.serve(pair)

    def models(self, choice: Choice) -> Models | None:
        """Return what may take the place of what answers at first, None where nothing may."""
        return None if self.folder is None else Models(self.folder, self.load, choice)
