"""Runs and exports to pairs, and pairs to services: the one that a process was started with, and those named later."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mmrec.errors import ArtifactError, MmrecError
from mmrec.inference.export import VectorFolder
from mmrec.inference.projection import read_projection
from mmrec.inference.recommender import Recommender
from mmrec.notices import Meter, Notify, ignore, silent_meter
from mmrec.serving.answers.service import Service
from mmrec.serving.deployment.choice import Choice, Names, base_of
from mmrec.serving.deployment.model_folder import ModelFolder, Places
from mmrec.serving.deployment.swapping import Models
from mmrec.serving.model.catalogue_index import OpenIndex, exported_index
from mmrec.serving.model.exported import Exported, Pair
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


def load_pair(
    run: Path,
    vectors: Path,
    *,
    feed: Path | None = None,
    device: str = "auto",
    open_index: OpenIndex = exported_index,
    notify: Notify = ignore,
    meter: Meter = silent_meter,
) -> Pair:
    """Load a run and an export as one pair.

    Args:
        run: run folder.
        vectors: folder of an export of that run.
        feed: prepared feed, by default the exported one.
        device: where to compute.
        open_index: opens what finds candidates.
        notify: told what is about to be done.
        meter: shows progress.

    Raises:
        ArtifactError: no run or no export, or one of another model or feed than the other.
    """
    folder = VectorFolder.open(vectors)
    place = feed or Path(str(folder.manifest["feed"]))
    recommender = Recommender.load(
        run, feed=place, device=device, compute_dtype=folder.compute_dtype, notify=notify, meter=meter
    )
    folder.require_model(recommender.model_hash)
    catalogue = recommender.assembly.catalogue
    if catalogue.feed_hash != folder.manifest["feed_hash"]:
        raise ArtifactError(
            "vectors of the feed that is served",
            got="vectors of another feed, or of an earlier state of it",
            where=str(vectors),
            fix=f"Export again: mmrec export {run} --out {vectors}.",
        )
    # Exports may be cut, quantised or normalised; what the index finds is scored with these, so that all verbs agree.
    full = recommender.item_embeddings(meter=meter)
    # Mapped into memory, and so there once however many processes serve them.
    store = open_index(folder, full if folder.format.whole else folder.items()[1], notify)
    table = folder.table()
    if len(table) != len(catalogue):
        raise ArtifactError(
            f"{len(catalogue)} exported items",
            got=str(len(table)),
            where=str(vectors),
            fix=f"Export again: mmrec export {run} --out {vectors}.",
        )
    return Pair(
        recommender,
        Exported(
            folder.format,
            store,
            full,
            table,
            catalogue.find,
            read_projection(folder),
        ),
        vectors.resolve().name,
    )
