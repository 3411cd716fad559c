"""A run as a service, and the keys to it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mmrec.cli.shared import FeedOption, app, notify
from mmrec.console import print_text, progress


@app.command(epilog="Example: mmrec serve runs/hm --vectors vectors/hm")
def serve(
    run: Annotated[Path | None, typer.Argument(help="Folder of a trained run.", metavar="RUN")] = None,
    vectors: Annotated[
        Path | None,
        typer.Option("--vectors", help="Folder of an export of that run (mmrec export).", metavar="VECTORS"),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML file of these options and of limits (configs/serve.yaml); options given here count more.",
            metavar="FILE",
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            help="Address to listen at; others than this machine's own need --keys.", show_default="127.0.0.1"
        ),
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port to listen at.", show_default="8000")] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the embedded store: posts, feedback, what was shown.",
            metavar="DIR",
            show_default="mmrec-data",
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            help="Another store in place of --data: DIR, postgresql://... or qdrant+http://...; or in MMREC_STORE.",
            envvar="MMREC_STORE",
            show_envvar=False,
            metavar="DIR|URL",
        ),
    ] = None,
    index: Annotated[
        Literal["export", "store"] | None,
        typer.Option(
            help="What finds candidates: the export's index, or its vectors in Postgres or Qdrant.",
            show_default="export",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that serve, behind one socket.", show_default="1")
    ] = None,
    keys: Annotated[Path | None, typer.Option(help="File of keys (mmrec keys create).", metavar="FILE")] = None,
    models: Annotated[
        Path | None,
        typer.Option(help="Folder of runs and exports that POST /admin/model may switch to.", metavar="DIR"),
    ] = None,
    feed: FeedOption = None,
    device: Annotated[str | None, typer.Option(help="Where to compute.", show_default="auto")] = None,
    *,
    served_log: Annotated[
        bool | None,
        typer.Option(
            "--served-log/--no-served-log",
            help="Keep what every answer shows, under its request_id.",
            show_default="served-log",
        ),
    ] = None,
    reveal_ids: Annotated[
        bool | None, typer.Option("--reveal-ids", help="Log user ids as they are, not as hashes.", show_default=False)
    ] = None,
    studio: Annotated[
        bool | None,
        typer.Option(
            "--studio/--no-studio",
            help="Serve the page at / and the routes that it alone needs.",
            show_default="studio",
        ),
    ] = None,
) -> None:
    """Serve scores, recommendations and search over HTTP, take in posts and feedback; needs mmrec[serve]."""
    from mmrec.commands.serve import serve_run
    from mmrec.serving.serve_config import read_serve_config

    named = {
        "run": run,
        "vectors": vectors,
        "host": host,
        "port": port,
        "data": data,
        "store": store,
        "index": index,
        "workers": workers,
        "keys": keys,
        "models": models,
        "feed": feed,
        "device": device,
        "served_log": served_log,
        "reveal_ids": reveal_ids,
        "studio": studio,
    }
    # What the command line leaves out (None) is up to the file, and then to the defaults.
    given = {name: value for name, value in named.items() if value is not None}
    options = read_serve_config(config, given)
    run_folder, vectors_folder = options.pair()
    serve_run(
        run_folder,
        vectors=vectors_folder,
        host=options.host,
        port=options.port,
        data=options.data,
        store=options.store,
        index=options.index,
        workers=options.workers,
        keys=options.keys,
        models=options.models,
        feed=options.feed,
        device=options.device,
        limits=options.limits,
        keep_served=options.served_log,
        reveal_ids=options.reveal_ids,
        studio=options.studio,
        notify=notify,
        meter=progress,
    )


@app.command(epilog="Example: mmrec keys create --scope read --name feed-ranker --file keys.toml")
def keys(
    action: Annotated[Literal["create"], typer.Argument(help="What to do with the file.")],
    scope: Annotated[Literal["read", "write", "admin"], typer.Option(help="What the key may do; write includes read.")],
    name: Annotated[str, typer.Option(help="Whose key it is.")],
    file: Annotated[Path, typer.Option("--file", help="File of keys; made if it is not there.", metavar="FILE")] = Path(
        "keys.toml"
    ),
    rate: Annotated[
        float | None, typer.Option(min=0, help="Requests a second, 0 for any number. Default: that of the service.")
    ] = None,
    burst: Annotated[int | None, typer.Option(min=1, help="Requests at once. Default: that of the service.")] = None,
) -> None:
    """Make a key for mmrec serve: it is printed once, the file keeps its hash."""
    from mmrec.serving.http.keys import create_key

    print_text(create_key(file, name=name, scope=scope, rate=rate, burst=burst))
    notify(f"added to {file}; the key is not shown again")
