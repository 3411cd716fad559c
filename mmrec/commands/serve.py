"""A run and its export to a service that listens."""

from __future__ import annotations

import ipaddress
import logging
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar, cast

from mmrec.assembly import Meter, Notify, ignore, silent_meter
from mmrec.commands.index import index_export
from mmrec.errors import ConfigError, MissingExtraError
from mmrec.inference.export import VectorFolder
from mmrec.inference.export_index import StoreKind
from mmrec.process import set_objects_aside
from mmrec.serving.answers.service import Service
from mmrec.serving.deployment.carry_over import restore
from mmrec.serving.deployment.choice import base_of
from mmrec.serving.deployment.loading import Loader
from mmrec.serving.deployment.model_folder import ModelFolder, Places
from mmrec.serving.figures.figure_board import FigureBoard
from mmrec.serving.figures.metrics import Metrics
from mmrec.serving.follower import Follower
from mmrec.serving.http.app import build_app
from mmrec.serving.http.http_protocol import BoundedHttp
from mmrec.serving.http.keys import KeyRing
from mmrec.serving.limits import Limits
from mmrec.serving.model.catalogue_index import OpenIndex, exported_index, stored_index
from mmrec.serving.model.exported import Pair
from mmrec.serving.stores.store import Store
from mmrec.serving.stores.store_place import StorePlace
from mmrec.serving.supervisor import Supervisor

try:
    import uvicorn
except ImportError as error:
    raise MissingExtraError("uvicorn", "serve") from error

IndexPlace = Literal["export", "store"]
_App = TypeVar("_App")
_GRACE_SECONDS = 5
"""Beyond the time of a request, in which a process ends."""
_KEEP_ALIVE_SECONDS = 75
"""An idle connection stays open; longer than those of the usual balancers do, or they would send into a closed one."""


@dataclass(frozen=True)
class Serving:
    """What a process serves; the same for all processes of a service.

    Args:
        run: run folder.
        vectors: folder of an export of that run.
        store: where writes go.
        keys: file of keys, or None.
        feed: prepared feed, by default the exported one.
        device: where to compute.
        limits: what a request may ask.
        keep_served: keep what every answer shows.
        reveal_ids: write user ids to the log as they are.
        models: folder of runs and exports that may take the place of this pair; None for none.
        studio: serve the page at / too.
        index: whose index finds candidates: the export's or the store's.
    """

    run: Path
    vectors: Path
    store: StorePlace
    keys: Path | None
    feed: Path | None
    device: str
    limits: Limits
    keep_served: bool
    reveal_ids: bool
    models: Path | None
    studio: bool
    index: IndexPlace

    def serve(
        self,
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
        ring = None if self.keys is None else KeyRing.load(self.keys)
        folder = None if self.models is None else ModelFolder(self.models, feed=self.feed)
        base_of(self.vectors)  # before a store is made beside what is no export
        metrics, store = Metrics(board), self.store.open(shared=shared)

        def make(pair: Pair) -> Service:
            return Service(pair, store, limits=self.limits, on_batch=metrics.on_batch, keep_served=self.keep_served)

        loader = Loader(Places(self.run, self.vectors, self.feed), folder, self.device, self.open_index(), make)
        build = partial(build_app, metrics=metrics, keys=ring, reveal_ids=self.reveal_ids, studio=self.studio)
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
            timeout_graceful_shutdown=int(self.limits.request_seconds) + _GRACE_SECONDS,
        )
        set_objects_aside()
        on_ready(items)
        uvicorn.Server(config).run(sockets=[listening])

    def open_index(self) -> OpenIndex:
        """Return what opens the index that finds candidates."""
        if self.index == "store":
            return partial(stored_index, place=self.store)
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


def serve_run(
    run: Path,
    *,
    vectors: Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    data: Path = Path("mmrec-data"),
    store: str | None = None,
    index: IndexPlace = "export",
    workers: int = 1,
    keys: Path | None = None,
    models: Path | None = None,
    feed: Path | None = None,
    device: str = "auto",
    limits: Limits | None = None,
    keep_served: bool = True,
    reveal_ids: bool = False,
    studio: bool = True,
    notify: Notify = ignore,
    meter: Meter = silent_meter,
) -> None:
    """Serve until the process is told to stop; what was accepted by then is finished.

    Args:
        run: run folder.
        vectors: folder of an export of that run.
        host: address to listen at.
        port: port to listen at.
        data: folder of the embedded store; made if it is not there.
        store: another store in its place: a folder, ``postgresql://...`` or ``qdrant+http://...``.
        index: whose index finds candidates: the export's, or a table of the store that is written where it is missing.
        workers: processes that serve.
        keys: file of keys; None only where no other machine reaches the service.
        models: folder of runs and exports that may take the place of this pair while it runs; None for none.
        feed: prepared feed, by default the exported one.
        device: where to compute.
        limits: what a request may ask.
        keep_served: keep what every answer shows.
        reveal_ids: write user ids to the log as they are.
        studio: serve the page at / too.
        notify: told what is about to be done.
        meter: shows progress; of one process only.

    Raises:
        ArtifactError: no run, no export, or two that do not belong together.
        ConfigError: an address that other machines reach without keys or that is taken, a file that holds no keys, a
            store in use or out of reach.
    """
    if keys is None and not is_loopback(host):
        raise ConfigError(
            "keys for a service that other machines reach",
            got=f"--host {host} without --keys",
            fix="Make one (mmrec keys create --scope read --name NAME --file keys.toml) and give --keys keys.toml.",
        )
    place = StorePlace.parse(str(data) if store is None else store)
    serving = Serving(
        run=run,
        vectors=vectors,
        store=place,
        keys=keys,
        feed=feed,
        device=device,
        limits=limits or Limits(),
        keep_served=keep_served,
        reveal_ids=reveal_ids,
        models=models,
        studio=studio,
        index=index,
    )
    shown = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def ready(items: int) -> None:
        page = "a page to look at it at /, " if studio else ""
        notify(f"serving {items} items at {shown}, {page}its description at /docs; Ctrl-C ends it")

    with bound_socket(host, port) as listening:
        if workers == 1:
            serving.serve(listening, notify=notify, meter=meter, on_ready=ready)
            return
        with place.held(), tempfile.TemporaryDirectory(prefix="mmrec-figures-") as folder:
            work = partial(_work, serving, listening, Path(folder))
            grace = serving.limits.request_seconds + 3 * _GRACE_SECONDS
            Supervisor(work, workers=workers, grace=grace, notify=notify).run(
                on_ready=lambda: notify(
                    f"{workers} processes serve at {shown}, its description at /docs; Ctrl-C ends them"
                )
            )


def _work(
    serving: Serving, listening: socket.socket, figures: Path, number: int, notify: Notify, ready: Callable[[], None]
) -> None:
    """Be one of several processes."""
    board = FigureBoard(figures, number)
    serving.serve(listening, board=board, notify=notify, on_ready=lambda items: ready(), shared=True)


def bound_socket(host: str, port: int) -> socket.socket:
    """Return a socket that is bound, but does not listen yet: until the service does, callers are refused.

    Raises:
        ConfigError: an address that is taken, or none of this machine.
    """
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        # asyncio sends at once (TCP_NODELAY) only what it knows to be TCP: otherwise each answer waits 40 ms for an acknowledgement.
        made = socket.socket(kind, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
        except OSError:
            made.close()
            raise
    except OSError as error:
        raise ConfigError(
            "a free address of this machine",
            got=f"{host}:{port}: {error.strerror}",
            where="--host, --port",
            fix="Give another --port, or end what listens there.",
        ) from error
    return made


def is_loopback(host: str) -> bool:
    """Return whether an address reaches this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("mmrec.serving")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    # It quotes what it was sent.
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
