"""A run and its export to one process that answers."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import TypeVar, cast

from mmrec.commands.index import index_export
from mmrec.errors import MissingExtraError
from mmrec.inference.export import VectorFolder
from mmrec.inference.export_index import StoreKind
from mmrec.notices import Meter, Notify, silent_meter
from mmrec.process import set_objects_aside, use_plain_arrow_memory
from mmrec.serving.answers.service import Service
from mmrec.serving.deployment.carry_over import restore
from mmrec.serving.deployment.choice import base_of
from mmrec.serving.deployment.loading import Loader
from mmrec.serving.deployment.model_folder import ModelFolder, Places
from mmrec.serving.deployment.serving_plan import ServingPlan
from mmrec.serving.figures.figure_board import FigureBoard
from mmrec.serving.figures.metrics import Metrics
from mmrec.serving.follower import Follower
from mmrec.serving.http.app import build_app
from mmrec.serving.http.http_protocol import BoundedHttp
from mmrec.serving.http.keys import KeyRing
from mmrec.serving.model.catalogue_index import OpenIndex, exported_index, stored_index
from mmrec.serving.model.exported import Pair
from mmrec.serving.model.threads import one_blas_thread
from mmrec.serving.stores.store import Store

try:
    import uvicorn
except ImportError as error:
    raise MissingExtraError("uvicorn", "serve") from error

_App = TypeVar("_App")
_GRACE_SECONDS = 5
"""Beyond the time of a request, in which a process ends."""
_KEEP_ALIVE_SECONDS = 75
"""An idle connection stays open; longer than those of the usual balancers do, or they would send into a closed one."""


def serve(
    plan: ServingPlan,
    listening: socket.socket,
    *,
    board: FigureBoard | None = None,
    notify: Notify,
    meter: Meter = silent_meter,
    on_ready: Callable[[int], None],
    shared: bool = False,
) -> None:
    """Serve until the process is told to stop; what was accepted by then is finished.

    Args:
        plan: what to serve.
        listening: a bound socket.
        board: where the processes of the service show each other their figures.
        notify: told what is about to be done.
        meter: shows progress.
        on_ready: told the number of items when everything is loaded.
        shared: this is one of several processes; the one that started them holds the store.

    Raises:
        ArtifactError: no run, no export, or two that do not belong together.
        ConfigError: a file without keys, or a store that cannot be reached.
    """
    use_plain_arrow_memory()
    ring = None if plan.keys is None else KeyRing.load(plan.keys)
    folder = None if plan.models is None else ModelFolder(plan.models, feed=plan.feed)
    base_of(plan.vectors)  # before a store is made beside what is no export
    metrics, store = Metrics(board), plan.store.open(shared=shared)

    def make(pair: Pair) -> Service:
        return Service(pair, store, limits=plan.limits, on_batch=metrics.on_batch, keep_served=plan.keep_served)

    loader = Loader(Places(plan.run, plan.vectors, plan.feed), folder, plan.device, _open_index(plan), make)
    build = partial(build_app, metrics=metrics, keys=ring, reveal_ids=plan.reveal_ids, studio=plan.studio)
    app, items = _application(loader, store, build, watch=metrics.share, notify=notify, meter=meter)
    _log_to_stderr()
    config = uvicorn.Config(
        app,
        http=BoundedHttp,
        ws="none",
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(plan.limits.request_seconds) + _GRACE_SECONDS,
    )
    set_objects_aside()
    on_ready(items)
    with one_blas_thread():
        uvicorn.Server(config).run(sockets=[listening])


def _open_index(plan: ServingPlan) -> OpenIndex:
    """Return what opens the index that finds candidates."""
    if plan.index == "store":
        return partial(stored_index, place=plan.store)
    return partial(exported_index, rebuild=_rebuild)


def _rebuild(folder: VectorFolder) -> None:
    """Make the index of an export again, of the kind it had."""
    about = folder.manifest.get("index")
    kind = about.get("kind") if isinstance(about, dict) else None
    store = cast("StoreKind", folder.manifest["store"])
    index_export(folder.folder, store=store, index=kind if store == "faiss" else None)


def _application(
    loader: Loader,
    store: Store,
    build: Callable[..., _App],
    *,
    watch: Callable[[], None],
    notify: Notify,
    meter: Meter,
) -> tuple[_App, int]:
    """Return what answers, and how many items it has; it alone holds the first model, so that a swap can let go of it."""
    try:
        service, choice = loader.first(store, notify=notify, meter=meter)
        restore(service, notify=notify)
    except BaseException:
        store.close()
        raise
    return build(service, models=loader.models(choice), follower=Follower(watch)), len(service.items)


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("mmrec.serving")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    # It quotes what it was sent.
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
