"""The command line ``mmrec``: parse, call, print.  Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mmrec.console import print_json, print_table, print_text, progress, run_app

if TYPE_CHECKING:
    from mmrec.training.profile import Profile

app = typer.Typer(
    help="Train a recommender on posts with a caption and a picture; score new posts; export vectors for search.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RunArgument = Annotated[Path, typer.Argument(help="Folder of a trained run.", metavar="RUN")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps; auto takes a GPU where there is one.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON to stdout instead of a table.")]
FeedOption = Annotated[
    Path | None,
    typer.Option("--feed", help="Prepared feed; by default the one the run was trained on.", metavar="FEED"),
]
IndexOption = Annotated[
    Literal["flat", "hnsw", "ivfpq"] | None, typer.Option("--index", help="Kind of FAISS index; by default hnsw.")
]


@app.command(epilog="Example: mmrec train configs/minilm_effnet.yaml --feed work/hm --out runs/hm --set train.epochs=3")
def train(
    config: Annotated[Path, typer.Argument(help="YAML configuration; see configs/.", metavar="CONFIG")],
    feed: Annotated[Path, typer.Option("--feed", help="Prepared feed (mmrec-data prepare).", metavar="FEED")],
    out: Annotated[Path, typer.Option(help="Folder of the run.", metavar="RUN")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, dotted keys, repeatable.", metavar="KEY=VALUE")
    ] = None,
    *,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest whole checkpoint.")] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Show where the time of a step goes; also written to RUN/profile.json.")
    ] = False,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Train a recommender on a prepared feed."""
    from mmrec.config_file import load_config
    from mmrec.process import keep_freed_memory, launched_rank

    settings = load_config(config, overrides=overrides or [])
    keep_freed_memory()
    from mmrec.commands.train import train_run

    profiles: list[Profile] = []
    on_profile = (profiles.append if as_json else _print_profile) if profile else None
    summary = train_run(
        settings,
        feed=feed,
        out=out,
        resume=resume,
        device=device,
        notify=_notify,
        meter=progress,
        on_profile=on_profile,
    )
    if launched_rank():
        return
    if as_json:
        print_json(summary | ({"profile": profiles[0].to_dict()} if profiles else {}))
        return
    print_table("Training", ["what", "value"], [[key, value] for key, value in summary.items()])
    print_text(f"Next: mmrec evaluate {out} --split test")


@app.command(
    epilog="Example: mmrec tune configs/minilm_effnet.yaml --feed work/hm --space configs/space/small.yaml "
    "--out runs/tune-hm --trials 20.  The same command goes on where it was stopped; more --trials add to them."
)
def tune(
    config: Annotated[Path, typer.Argument(help="YAML configuration that trials vary.", metavar="CONFIG")],
    feed: Annotated[Path, typer.Option("--feed", help="Prepared feed (mmrec-data prepare).", metavar="FEED")],
    space: Annotated[Path, typer.Option(help="YAML file of settings and values; see configs/space/.", metavar="FILE")],
    out: Annotated[Path, typer.Option(help="Folder of the tune; new, or one to go on with.", metavar="DIR")],
    trials: Annotated[int, typer.Option(min=1, help="Trials in all, earlier ones included.")] = 20,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE for all trials, repeatable.", metavar="KEY=VALUE")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, which share the threads or GPUs.")] = 1,
    device: DeviceOption = "auto",
    *,
    as_json: JsonOption = False,
) -> None:
    """Search a space of settings for the best validation metric; needs mmrec[tune].

    Writes best.yaml (for mmrec train), tune.json and every trial's metrics; never opens the test split.
    """
    from mmrec.config_file import load_config
    from mmrec.process import keep_freed_memory

    settings = load_config(config, overrides=overrides or [])
    keep_freed_memory()
    from mmrec.commands.tune import refuse_without_value, tune_run

    result = tune_run(
        settings,
        feed=feed,
        space=space,
        out=out,
        trials=trials,
        workers=workers,
        device=device,
        notify=_notify,
        meter=progress,
    )
    if as_json:
        print_json(result.to_dict())
    else:
        print_table("Trials (validation)", *result.table())
        if failures := result.failures():
            print_table("Why trials failed", ["trials", "message"], failures)
        if result.importance is not None:
            print_table("What matters", ["setting", "share"], [[key, x] for key, x in result.importance.items()])
        for note in result.notes():
            print_text(note)
    refuse_without_value(result)
    if not as_json:
        print_text(f"Next: mmrec train {out / 'best.yaml'} --feed {feed} --out RUN")


@app.command(epilog="Example: mmrec evaluate runs/hm --split test --against runs/text_only")
def evaluate(
    run: RunArgument,
    split: Annotated[
        Literal["validation", "test", "warm", "calibration"],
        typer.Option(
            help="Cases to answer; open the test cases once, at the end.  warm: of a cold_items split made with "
            "--warm-share, what the cold posts cost the others; calibration: the cases by which training chose that."
        ),
    ] = "validation",
    against: Annotated[
        Path | None, typer.Option(help="Another run, evaluated on the same cases: paired differences.", metavar="RUN")
    ] = None,
    feed: FeedOption = None,
    device: DeviceOption = "auto",
    *,
    knockout: Annotated[bool, typer.Option(help="Measure what each modality is worth.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Rank the whole catalogue for every case; print a table, write report.json and report.html."""
    from mmrec.process import keep_freed_memory

    keep_freed_memory()
    from mmrec.commands.evaluate import compare_runs, evaluate_run

    result = evaluate_run(run, part=split, feed=feed, device=device, knockouts=knockout, notify=_notify, meter=progress)
    comparison = None if against is None else compare_runs(run, against, part=split)
    if as_json:
        print_json(result.report.to_dict() | ({} if comparison is None else {"against": comparison.to_dict()}))
        return
    from mmrec.evaluation.console import comparison_tables, text_tables

    tables = text_tables(result.report)
    if comparison is not None:
        tables += comparison_tables(comparison, first=run.name, second="" if against is None else against.name)
    for table in tables:
        print_table(table.title, table.header, table.rows)
        for note in table.notes:
            print_text(note)
    print_text(f"Report: {result.page}")


@app.command(
    epilog="Example: mmrec score runs/hm --requests requests.parquet --out scores.parquet.  A request has request_id "
    "(optional), user_id or history (list, or | in text files), and either candidates (list, or |) or, one row a "
    "candidate, item_id or caption/image."
)
def score(
    run: RunArgument,
    requests: Annotated[Path, typer.Option(help="Table of requests: csv, tsv, jsonl or parquet.", metavar="FILE")],
    out: Annotated[Path, typer.Option(help="Parquet (or .csv, .jsonl) file of scores.", metavar="FILE")],
    candidates: Annotated[
        Path | None,
        typer.Option(
            help="Table of candidates (item_id, or caption and image) shared by all requests.", metavar="FILE"
        ),
    ] = None,
    feed: FeedOption = None,
    device: DeviceOption = "auto",
    *,
    as_json: JsonOption = False,
) -> None:
    """Score candidates for users; candidates may be posts nobody has seen."""
    from mmrec.commands.score import score_file

    with progress("requests") as advance:
        summary = score_file(
            run, requests=requests, out=out, candidates=candidates, feed=feed, device=device, progress=advance
        )
    _print_summary("Scores", summary, as_json=as_json)


@app.command(epilog="Example: mmrec recommend runs/hm --users users.csv -k 20 --out top.parquet")
def recommend(
    run: RunArgument,
    out: Annotated[Path, typer.Option(help="Parquet (or .csv, .jsonl) file of recommendations.", metavar="FILE")],
    users: Annotated[
        Path | None,
        typer.Option(help="Table with user_id, or with history; by default every user of the feed.", metavar="FILE"),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Items for each user.")] = 20,
    feed: FeedOption = None,
    device: DeviceOption = "auto",
    *,
    new_only: Annotated[bool, typer.Option("--new-only", help="Leave out what is in the user's history.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the best items of the catalogue for users."""
    from mmrec.commands.score import recommend_file

    with progress("users") as advance:
        summary = recommend_file(
            run, users=users, out=out, k=k, new_only=new_only, feed=feed, device=device, progress=advance
        )
    _print_summary("Recommendations", summary, as_json=as_json)


@app.command(epilog="Example: mmrec export runs/hm --out vectors/hm --store faiss --index hnsw")
def export(
    run: RunArgument,
    out: Annotated[
        str | None, typer.Option(help="Folder of vectors, or a URL (s3://, gs://) to copy it to.", metavar="DIR")
    ] = None,
    store: Annotated[
        Literal["none", "faiss", "lancedb"], typer.Option(help="Index beside the parquet files.")
    ] = "none",
    index: IndexOption = None,
    precision: Annotated[
        Literal["float32", "float16", "int8"], typer.Option("--precision", "--dtype", help="Number format.")
    ] = "float32",
    dim: Annotated[
        int | None,
        typer.Option(
            "--dim", "--dims", min=1, help="Keep the first dimensions (objective.matryoshka_dims trains them)."
        ),
    ] = None,
    feed: FeedOption = None,
    device: DeviceOption = "auto",
    *,
    normalise: Annotated[bool, typer.Option("--normalise", help="Unit vectors without the bias coordinate.")] = False,
    only_new: Annotated[bool, typer.Option("--only-new", help="Encode only posts whose content changed.")] = False,
    users: Annotated[bool, typer.Option(help="Write user vectors too.")] = True,
    with_map: Annotated[
        bool, typer.Option("--map", help="Write a 2-d map of the catalogue too (t-SNE with mmrec[studio], else PCA).")
    ] = False,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Who encodes: this process, or workers of Ray (here or a cluster).")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Workers of Ray; by default one a GPU, or one a core without.")
    ] = None,
    blocks: Annotated[
        str | None,
        typer.Option(
            help="Path or URL (file://, s3://, gs://) where workers of Ray leave blocks of vectors; by default beside "
            "DIR until it is whole.",
            metavar="URL",
        ),
    ] = None,
    block_items: Annotated[int | None, typer.Option(min=1, help="Posts of a block (8192).")] = None,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Write nothing; show bytes and recall of several widths and number formats."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write item and user vectors, a manifest, and optionally an index."""
    if compare == (out is not None):
        raise typer.BadParameter("give either --out or --compare")
    if compare and (store != "none" or index is not None or only_new or engine != "local"):
        raise typer.BadParameter("--compare writes nothing: leave out --store, --index, --only-new and --engine")
    if out is None:
        from mmrec.commands.export_choices import compare_choices

        rows = compare_choices(run, dim=dim, normalise=normalise, feed=feed, device=device, meter=progress)
        if as_json:
            print_json({"choices": rows})
        else:
            names = [name.removeprefix("recall") for name in rows[0]]
            print_table("Recall of smaller vectors against full ones", names, [list(row.values()) for row in rows])
        return
    from mmrec.commands.export import export_run
    from mmrec.commands.export_engine import EngineChoice
    from mmrec.commands.export_remote import export_to
    from mmrec.places import local_path

    if engine == "ray" and blocks is None and local_path(out) is None:
        blocks = f"{out.rstrip('/')}.blocks"
    export = partial(
        export_run,
        run,
        store=store,
        index=index,
        precision=precision,
        dim=dim,
        normalise=normalise,
        only_new=only_new,
        users=users,
        with_map=with_map,
        engine=EngineChoice(engine, blocks, workers, block_items),
        feed=feed,
        device=device,
        meter=progress,
    )
    summary = export_to(out, lambda folder: export(out=folder))
    _print_summary("Export", summary, as_json=as_json)


@app.command(epilog="Example: mmrec index vectors/hm --store faiss --index ivfpq")
def index(
    vectors: Annotated[Path, typer.Argument(help="Folder of vectors (mmrec export).", metavar="VECTORS")],
    store: Annotated[
        Literal["none", "faiss", "lancedb"], typer.Option(help="Index beside the parquet files; none removes it.")
    ] = "faiss",
    kind: IndexOption = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Replace the index of an export; needs neither its run nor an encoder."""
    from mmrec.commands.index import index_export

    with progress("index"):
        summary = index_export(vectors, store=store, index=kind)
    _print_summary("Index", summary, as_json=as_json)


@app.command(epilog='Example: mmrec search vectors/hm --text "striped wool jumper" --where "price<30" -k 5')
def search(
    vectors: Annotated[Path, typer.Argument(help="Folder of vectors (mmrec export).", metavar="VECTORS")],
    text: Annotated[str | None, typer.Option(help="A caption.")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="A picture; repeatable.", metavar="FILE")] = None,
    item: Annotated[list[str] | None, typer.Option(help="An item id; repeatable.", metavar="ID")] = None,
    user: Annotated[str | None, typer.Option(help="A user id.", metavar="ID")] = None,
    where: Annotated[str, typer.Option(help="Conditions on attributes, such as colour=Black and price<20.")] = "",
    k: Annotated[int, typer.Option("-k", min=1, help="Posts to return.")] = 10,
    run: Annotated[
        Path | None,
        typer.Option("--run", help="Run that encodes the query; by default the one that exported.", metavar="RUN"),
    ] = None,
    feed: Annotated[
        Path | None,
        typer.Option("--feed", help="Prepared feed that knows the user; by default the exported one.", metavar="FEED"),
    ] = None,
    device: DeviceOption = "auto",
    *,
    as_json: JsonOption = False,
) -> None:
    """Find posts by a caption, a picture, an item, a user, or any mix of them."""
    from mmrec.commands.search import search_vectors

    if not (text or image or item or user):
        raise typer.BadParameter("give at least one of --text, --image, --item, --user")
    found = search_vectors(
        vectors,
        text=text,
        images=image or [],
        items=item or [],
        user=user,
        where=where,
        k=k,
        run=run,
        feed=feed,
        device=device,
    )
    if as_json:
        print_json(found.to_dict())
        return
    print_table("Found", list(found.columns), [list(row) for row in found.rows])
    if found.note:
        print_text(found.note)


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
        notify=_notify,
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
    _notify(f"added to {file}; the key is not shown again")


@app.command("convert-weights", epilog="Example: mmrec convert-weights efficientnet_lite0")
def convert_weights(
    source: Annotated[
        str, typer.Argument(help="A known name (efficientnet_lite0) or a .pt/.pth file of plain tensors.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="safetensors file; by default in the weights cache.", metavar="FILE")
    ] = None,
) -> None:
    """Convert .pt/.pth weights to safetensors, the only format that runs read."""
    from mmrec.encoders.weights import convert_weights as convert

    print_text(f"Wrote {convert(source, out=out)}")


def _notify(message: str) -> None:
    typer.echo(message, err=True)


def _print_profile(profile: Profile) -> None:
    from mmrec.commands.profiling import figure_rows

    print_table("Where the time of a step goes", *profile.table())
    if profile.loader_rows:
        print_table("Beside it, in the loader's thread", *profile.loader_table())
    print_table("Profile", ["what", "value"], figure_rows(profile))


def _print_summary(title: str, summary: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        print_json(summary)
    else:
        print_table(title, ["what", "value"], [[key, value] for key, value in summary.items()])


def main() -> None:
    """Run the command line."""
    run_app(app, name="mmrec")


if __name__ == "__main__":
    main()
