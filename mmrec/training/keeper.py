"""Keeps the checkpoints of one training: what goes into them, when one is whole, which of them stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from torch import Tensor, nn
from torch.optim import Optimizer

from mmrec.errors import ArtifactError
from mmrec.training import checkpoint, snapshot
from mmrec.training.progress import Progress
from mmrec.training.ranks import Ranks
from mmrec.training.sharding import is_sharded, whole


@dataclass(frozen=True)
class Restored:
    """What :meth:`Keeper.begin` found beside what it put back into the model and the optimiser."""

    progress: Progress
    bank: Tensor | None


@dataclass
class Keeper:
    """Saves and restores one training.

    Of several processes the first writes for all; each keeps its own random numbers.

    Args:
        ranks: the processes.
        folder: where the checkpoints are.
        model: its trainable parameters, buffers and gradients are kept.
        optimizer: its state is kept.
        metric: name of the validation metric, for ``best.json``.
        keep: newest checkpoints that stay, beside the best.
        files: written into every checkpoint as they are.
        base: fingerprints of the frozen weights.
        saved: name of the newest checkpoint.
    """

    ranks: Ranks
    folder: Path
    model: nn.Module
    optimizer: Optimizer
    metric: str
    keep: int
    files: Mapping[str, bytes]
    base: Mapping[str, str]
    saved: str = ""

    def begin(self, *, resume: bool, num_batches: int, warn: Callable[[str], None]) -> Restored | None:
        """Put the newest whole checkpoint into model, optimiser and random number generators; None where there is none.

        Raises:
            ArtifactError: there are checkpoints but ``resume`` is off, or the newest is of another training.
        """
        latest = self._find(resume=resume, warn=warn) if self.ranks.is_first else None
        found = [float(number) for number in checkpoint.position(latest)] if latest else [-1.0, -1.0]
        epoch, batch = (int(number) for number in self.ranks.agree_on(found))
        if epoch < 0:
            return None
        name = checkpoint.checkpoint_name(epoch=epoch, batch=batch)
        return self._restore(self.folder / name, num_batches=num_batches)

    def _find(self, *, resume: bool, warn: Callable[[str], None]) -> Path | None:
        found = checkpoint.checkpoints(self.folder)
        if found and not resume:
            raise ArtifactError(
                "a folder without checkpoints",
                got=f"{len(found)} of them",
                where=str(self.folder),
                fix="Continue that run with --resume, or choose another folder.",
            )
        checkpoint.remove_leftovers(self.folder)
        latest = checkpoint.latest_checkpoint(self.folder, warn=warn)
        if found and latest is None:
            warn("no checkpoint is whole; training starts from the beginning")
        return latest

    def save(self, progress: Progress, *, bank: Tensor | None) -> None:
        """Write a checkpoint of this position unless there is one, point at the best, delete what is not needed."""
        name = checkpoint.checkpoint_name(epoch=progress.epoch, batch=progress.batch)
        if name == self.saved:
            return
        tensors = self._gather(bank)
        if self.ranks.is_first:
            self._write(name, progress, tensors)
        self.saved = name

    def _gather(self, bank: Tensor | None) -> dict[str, dict[str, Tensor]]:
        """Return all tensors of a checkpoint in the first process; the others only send what it lacks."""
        generators = self.ranks.collect(snapshot.rng_tensors(self.ranks.device))
        tensors = {
            checkpoint.MODEL: snapshot.model_tensors(self.model),
            checkpoint.OPTIMIZER: snapshot.optimizer_tensors(self.optimizer),
            checkpoint.RNG: {
                f"{kind}.{rank}": state for rank, states in enumerate(generators) for kind, state in states.items()
            },
        }
        if gradients := snapshot.gradient_tensors(self.model):
            tensors[checkpoint.GRADIENTS] = gradients
        if bank is not None:
            tensors[checkpoint.BANK] = {checkpoint.BANK: bank}
        return {stem: whole(parts, keep=self.ranks.is_first) for stem, parts in tensors.items()}

    def _write(self, name: str, progress: Progress, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        groups = [
            {key: value for key, value in group.items() if key != "params"} for group in self.optimizer.param_groups
        ]
        content = checkpoint.Checkpoint(
            tensors=tensors,
            state={"progress": progress.to_state(), "base": dict(self.base), "optimizer": groups},
            files=self.files,
            best=progress.best_checkpoint,
        )
        checkpoint.write_checkpoint(self.folder / name, content)
        self._point_at_best(progress)
        checkpoint.prune_checkpoints(self.folder, newest=name, keep=self.keep)

    def _restore(self, path: Path, *, num_batches: int) -> Restored:
        content = checkpoint.read_checkpoint(path)
        tensors, where = content.tensors, str(path)
        if content.state["base"] != dict(self.base):
            raise ArtifactError(
                f"the frozen weights {content.state['base']}",
                got=str(dict(self.base)),
                where=where,
                fix="Use the pretrained weights that the run was started with.",
            )
        state = cast("dict[str, object]", content.state["progress"])
        progress = Progress.from_state(state, batches_per_epoch=num_batches, where=where)
        snapshot.load_model_tensors(self.model, tensors[checkpoint.MODEL], where=where)
        snapshot.load_optimizer_tensors(self.optimizer, tensors[checkpoint.OPTIMIZER], where=where)
        # They are sums over all ranks, and those of whole parameters will be added up again.
        sharded = {name for name, parameter in self.model.named_parameters() if is_sharded(parameter)}
        gradients = {
            name: gradient
            for name, gradient in tensors.get(checkpoint.GRADIENTS, {}).items()
            if self.ranks.is_first or name in sharded
        }
        snapshot.load_gradient_tensors(self.model, gradients)
        own = f".{self.ranks.rank}"
        generators = {name.removesuffix(own): x for name, x in tensors[checkpoint.RNG].items() if name.endswith(own)}
        snapshot.load_rng_tensors(generators, self.ranks.device)
        self.saved = path.name
        if self.ranks.is_first:
            self._point_at_best(progress)
        return Restored(progress, tensors.get(checkpoint.BANK, {}).get(checkpoint.BANK))

    def _point_at_best(self, progress: Progress) -> None:
        if progress.best is not None:
            name = progress.best_checkpoint
            checkpoint.write_best(self.folder, name=name, metric=self.metric, value=progress.best)
