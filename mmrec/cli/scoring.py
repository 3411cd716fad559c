"""Measure a run, and ask it: evaluate, score, recommend."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mmrec.cli.shared import (
    ComputeOption,
    DeviceOption,
    FeedOption,
    JsonOption,
    RunArgument,
    app,
    notify,
    print_summary,
)
from mmrec.console import print_json, print_table, print_text, progress


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
        Path | None,
        typer.Option(
            help="Another run, evaluated on the same cases: paired differences.  In bfloat16 also this run, as it was in "
            "float32.",
            metavar="RUN",
        ),
    ] = None,
    feed: FeedOption = None,
    device: DeviceOption = "auto",
    compute_dtype: ComputeOption = "float32",
    *,
    knockout: Annotated[bool, typer.Option(help="Measure what each modality is worth.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Rank the whole catalogue for every case; print a table, write report.json and report.html."""
    from mmrec.process import keep_freed_memory

    keep_freed_memory()
    from mmrec.commands.evaluate import compare_runs, evaluate_run

    result = evaluate_run(
        run,
        part=split,
        feed=feed,
        device=device,
        compute_dtype=compute_dtype,
        knockouts=knockout,
        notify=notify,
        meter=progress,
    )
    comparison = None if against is None else compare_runs(run, against, part=split, compute_dtype=compute_dtype)
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
    compute_dtype: ComputeOption = "float32",
    *,
    as_json: JsonOption = False,
) -> None:
    """Score candidates for users; candidates may be posts nobody has seen."""
    from mmrec.commands.score import score_file

    with progress("requests") as advance:
        summary = score_file(
            run,
            requests=requests,
            out=out,
            candidates=candidates,
            feed=feed,
            device=device,
            compute_dtype=compute_dtype,
            progress=advance,
            notify=notify,
        )
    print_summary("Scores", summary, as_json=as_json)


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
    compute_dtype: ComputeOption = "float32",
    *,
    new_only: Annotated[bool, typer.Option("--new-only", help="Leave out what is in the user's history.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the best items of the catalogue for users."""
    from mmrec.commands.score import recommend_file

    with progress("users") as advance:
        summary = recommend_file(
            run,
            users=users,
            out=out,
            k=k,
            new_only=new_only,
            feed=feed,
            device=device,
            compute_dtype=compute_dtype,
            progress=advance,
            notify=notify,
        )
    print_summary("Recommendations", summary, as_json=as_json)
