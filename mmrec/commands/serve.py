"""A run and its export to a service that listens.

The process that watches over several others needs no model: what they run is imported where it is run.
"""

from __future__ import annotations

import ipaddress
import socket
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mmrec.errors import ConfigError
from mmrec.notices import Meter, Notify, ignore, silent_meter
from mmrec.serving.deployment.serving_plan import IndexPlace, ServingPlan
from mmrec.serving.limits import Limits
from mmrec.serving.stores.store_place import StorePlace
from mmrec.serving.supervisor import Supervisor

_PATIENCE_SECONDS = 15
"""Beyond the time of a request, before a process is ended that does not end by itself, which it has less time for."""


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
    plan = ServingPlan(
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
            from mmrec.commands.serving_process import serve

            serve(plan, listening, notify=notify, meter=meter, on_ready=ready)
            return
        with place.held(), tempfile.TemporaryDirectory(prefix="mmrec-figures-") as folder:
            work = partial(_work, plan, listening, Path(folder))
            grace = plan.limits.request_seconds + _PATIENCE_SECONDS
            Supervisor(work, workers=workers, grace=grace, notify=notify).run(
                on_ready=lambda: notify(
                    f"{workers} processes serve at {shown}, its description at /docs; Ctrl-C ends them"
                )
            )


def _work(
    plan: ServingPlan, listening: socket.socket, figures: Path, number: int, notify: Notify, ready: Callable[[], None]
) -> None:
    """Be one of several processes."""
    from mmrec.commands.serving_process import serve
    from mmrec.serving.figures.figure_board import FigureBoard

    board = FigureBoard(figures, number)
    serve(plan, listening, board=board, notify=notify, on_ready=lambda items: ready(), shared=True)


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
