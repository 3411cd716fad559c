"""Vectors of a run: export, index, search."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from mmrec.cli.shared import (
    ComputeOption,
    DeviceOption,
    FeedOption,
    IndexOption,
    JsonOption,
    RunArgument,
    app,
    notify,
    print_summary,
)
from mmrec.console import print_json, print_table, print_text, progress


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
    compute_dtype: ComputeOption = "float32",
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

        rows = compare_choices(
            run,
            dim=dim,
            normalise=normalise,
            feed=feed,
            device=device,
            compute_dtype=compute_dtype,
            notify=notify,
            meter=progress,
        )
        if as_json:
            print_json({"choices": rows})
        else:
            names = [name.removeprefix("recall") for name in rows[0]]
            print_table("Recall of smaller vectors against full ones", names, [list(row.values()) for row in rows])
        return
    from mmrec.commands.export import export_run
    from mmrec.commands.export_engine import EngineChoice
    from mmrec.commands.export_remote import export_to
    from mmrec.inference.block_store import BlockStore
    from mmrec.places import local_path

    beside = f"{out.rstrip('/')}.blocks" if engine == "ray" and blocks is None and local_path(out) is None else None
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
        engine=EngineChoice(engine, blocks or beside, workers, block_items),
        feed=feed,
        device=device,
        compute_dtype=compute_dtype,
        notify=notify,
        meter=progress,
    )
    summary = export_to(out, lambda folder: export(out=folder))
    if beside is not None:
        BlockStore(beside, "").remove()
    print_summary("Export", summary, as_json=as_json)


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
    print_summary("Index", summary, as_json=as_json)


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
