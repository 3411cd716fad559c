"""Weights from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmrec.cli.shared import app
from mmrec.console import print_text


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
