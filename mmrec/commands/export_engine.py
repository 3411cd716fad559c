"""Who encodes what an export needs: this process, or workers of an engine that is there already."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmrec.errors import RequestError
from mmrec.inference.blocks import BLOCK_ITEMS, BlockRun
from mmrec.inference.recommender import Recommender
from mmrec.places import full_place, reach

EngineKind = Literal["local", "ray"]


@dataclass(frozen=True)
class EngineChoice:
    """An engine that is wanted.

    Args:
        engine: who encodes.
        blocks: path or URL where workers leave their blocks, which stay there; by default beside the export, until it
            is whole.
        workers: workers at most; by default one a GPU, or one a core where there is none.
        block_items: items of a block.

    Raises:
        RequestError: settings of workers beside the local engine.
    """

    engine: EngineKind = "local"
    blocks: str | None = None
    workers: int | None = None
    block_items: int | None = None

    def __post_init__(self) -> None:
        given = {"--blocks": self.blocks, "--workers": self.workers, "--block-items": self.block_items}
        for name, value in given.items():
            if value is not None and self.engine == "local":
                raise RequestError(
                    f"{name} beside --engine ray",
                    got=f"{name} {value} beside --engine local",
                    fix=f"Leave {name} out, or give --engine ray.",
                )

    @property
    def is_local(self) -> bool:
        """Whether this process encodes."""
        return self.engine == "local"

    def check(self, out: Path) -> None:
        """Refuse, before anything is loaded, what could not be run.

        Raises:
            MissingExtraError: the engine's library is not installed.
            RequestError: a place that fsspec does not reach.
        """
        if not self.is_local:
            import mmrec.inference.ray_engine  # noqa: F401  (its absence is to be told before anything is loaded)

            reach(self.place(out), where="--blocks")

    def place(self, out: Path) -> str:
        """Return where blocks go."""
        return full_place(self.blocks or out.with_name(f"{out.name}.blocks"))

    def block_run(self, recommender: Recommender, out: Path, device: str) -> BlockRun | None:
        """Return what encodes the catalogue's rows; None where this process does."""
        if self.is_local:
            return None
        from mmrec.inference.ray_engine import RayBlocks

        return BlockRun(
            recommender,
            self.place(out),
            RayBlocks(self.workers, device),
            device="cuda" if device.startswith("cuda") else device,
            block_items=self.block_items or BLOCK_ITEMS,
        )
