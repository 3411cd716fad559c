"""A run and its export to a service that listens."""

from __future__ import annotations

import ipaddress
import logging
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mmrec.assembly import Meter, Notify, ignore, silent_meter
from mmrec.errors import ConfigError, MissingExtraError
from mmrec.serving.app import build_app
from mmrec.serving.choice import base_of
from mmrec.serving.exported import Pair
from mmrec.serving.keys import KeyRing
from mmrec.serving.limits import Limits
from mmrec.serving.loading import Loader
from mmrec.serving.metrics import Metrics
from mmrec.serving.model_folder import ModelFolder, Places
from mmrec.serving.publishing import Publishing
from mmrec.serving.service import Service
from mmrec.serving.sqlite_store import SqliteStore
from mmrec.serving.store import Store

try:
    import uvicorn
    from fastapi import FastAPI
except ImportError as error:
    raise MissingExtraError("uvicorn", "serve") from error


def serve_run(
    run: Path,
    *,
    vectors: Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    data: Path = Path("mmrec-data"),
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
        keys: file of keys; None only where no other machine reaches the service.
        models: folder of runs and exports that may take the place of this pair while it runs; None for none.
        feed: prepared feed, by default the exported one.
        device: where to compute.
        limits: what a request may ask.
        keep_served: keep what every answer shows.
        reveal_ids: write user ids to the log as they are.
        studio: serve the page at / too.
        notify: told what is about to be done.
        meter: shows progress.

    Raises:
        ArtifactError: no run, no export, or two that do not belong together.
        ConfigError: an address that other machines reach without keys, a file that holds none, or a store in use.
    """
    ring = None if keys is None else KeyRing.load(keys)
    if ring is None and not is_loopback(host):
        raise ConfigError(
            "keys for a service that other machines reach",
            got=f"--host {host} without --keys",
            fix="Make one (mmrec keys create --scope read --name NAME --file keys.toml) and give --keys keys.toml.",
        )
    limits, metrics = limits or Limits(), Metrics()
    folder = None if models is None else ModelFolder(models, feed=feed)
    base_of(vectors)  # before a store is made beside what is no export
    store = SqliteStore(data)

    def make(pair: Pair) -> Service:
        return Service(pair, store, limits=limits, on_batch=metrics.on_batch, keep_served=keep_served)

    loader = Loader(Places(run, vectors, feed), folder, device, make)
    build = partial(build_app, metrics=metrics, keys=ring, reveal_ids=reveal_ids, studio=studio)
    app = _application(loader, store, build, notify=notify, meter=meter)
    _log_to_stderr()
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=int(limits.request_seconds) + 5,
    )
    place = f"[{host}]" if ":" in host else host
    page = "a page to look at it at /, " if studio else ""
    notify(f"serving at http://{place}:{port}, {page}its description at /docs; Ctrl-C ends it")
    uvicorn.Server(config).run()


def _application(
    loader: Loader, store: Store, build: Callable[..., FastAPI], *, notify: Notify, meter: Meter
) -> FastAPI:
    """Return what answers; it alone holds the first model, which would else stay in memory after a swap."""
    try:
        service, choice = loader.first(store, notify=notify, meter=meter)
    except BaseException:
        store.close()
        raise
    Publishing(service).restore(notify=notify)
    notify(f"{len(service.items)} items of {service.recommender.run.path.name} are ready")
    return build(service, models=loader.models(choice))


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
