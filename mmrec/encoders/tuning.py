"""Which part of a pretrained encoder is trained: the cut between trunk and live blocks, and what follows from it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmrec.errors import ConfigError
from mmrec.storage import HASH_BYTES

TuningMode = Literal["frozen", "top", "full"]
TOLERANCE = 1e-4
"""Largest difference between a model's own forward pass and the same pass cut in two, as a share of its size."""
_NOT_ARCHITECTURE = frozenset({"training", "gradient_checkpointing", "grad_checkpointing", "name_or_path"})


@dataclass(frozen=True)
class Layers:
    """An encoder's modules in running order; what is in neither ``blocks`` nor ``head`` is the stem, which runs first.

    Args:
        root: everything.
        blocks: the blocks in a row, bottom first; ``(root,)`` when the model's blocks are not known.
        head: what runs after the last block (final norms, last convolutions); it is trained with the top-most block.
    """

    root: nn.Module
    blocks: tuple[nn.Module, ...]
    head: tuple[nn.Module, ...] = ()

    @property
    def divisible(self) -> bool:
        """Whether the model can be cut between blocks, not only before or after all of them."""
        return self.blocks != (self.root,)

    def live(self, trunk_blocks: int) -> tuple[nn.Module, ...]:
        """Modules above the cut."""
        if trunk_blocks == 0:
            return (self.root,)
        if trunk_blocks == len(self.blocks):
            return ()
        return self.blocks[trunk_blocks:] + self.head


def choose_trunk_blocks(mode: TuningMode, *, blocks: int, layers: Layers, where: str = "tuning") -> int:
    """Return how many blocks lie below the cut.

    ``frozen`` puts all of them there, ``full`` none, and ``top`` all but the last ``blocks``.  Training all blocks
    trains the stem as well.

    Raises:
        ConfigError: ``top`` of a model whose blocks are not known, or more blocks than there are.
    """
    count = len(layers.blocks)
    if mode == "frozen":
        return count
    if mode == "full":
        return 0
    if not layers.divisible:
        raise ConfigError(
            "an encoder whose blocks are known",
            got=f"mode 'top' for {type(layers.root).__name__}",
            where=where,
            fix="Use mode frozen or full with this model.",
        )
    if not 0 < blocks <= count:
        raise ConfigError(f"between 1 and {count} blocks", got=str(blocks), where=where, fix="Change tuning.blocks.")
    return count - blocks


def freeze_below(layers: Layers, trunk_blocks: int, *, run_live: Callable[[], Tensor]) -> None:
    """Let exactly those parameters above the cut require gradients that the output depends on.

    Args:
        layers: the encoder.
        trunk_blocks: blocks below the cut.
        run_live: runs the live part on a small input; parameters without gradient from it (a leftover classifier) are
            not trained, for an optimiser and DDP expect every trainable parameter to receive one.
    """
    live = {id(p) for module in layers.live(trunk_blocks) for p in module.parameters() if p.is_floating_point()}
    for parameter in layers.root.parameters():
        parameter.requires_grad_(id(parameter) in live)
    wanted = [p for p in layers.root.parameters() if p.requires_grad]
    if not wanted:
        return
    with torch.enable_grad():
        output = run_live()
        gradients = torch.autograd.grad(output.float().sum(), wanted, allow_unused=True)
    for parameter, gradient in zip(wanted, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)


def set_modes(layers: Layers, trunk_blocks: int, *, training: bool) -> None:
    """Put the live modules into the given mode and everything else into evaluation mode.

    Batch norms always use their running statistics: with those of a batch, a content's vector would depend on its
    neighbours, and encoding distinct items once would no longer equal encoding every occurrence.
    """
    layers.root.eval()
    for module in layers.live(trunk_blocks):
        module.train(training)
    for module in layers.root.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def group_by_depth(layers: Layers, trunk_blocks: int) -> list[list[nn.Parameter]]:
    """Return the trainable parameters, top-most block (and head) first, the stem last; each parameter once."""
    seen: set[int] = set()

    def fresh(*modules: nn.Module) -> list[nn.Parameter]:
        chosen = []
        for module in modules:
            for parameter in module.parameters():
                if parameter.requires_grad and id(parameter) not in seen:
                    seen.add(id(parameter))
                    chosen.append(parameter)
        return chosen

    live = layers.blocks[trunk_blocks:]
    if not live:
        return []
    groups = [fresh(live[-1], *layers.head), *(fresh(block) for block in reversed(live[:-1])), fresh(layers.root)]
    return [group for group in groups if group]


def frozen_hash(layers: Layers, trunk_blocks: int, *, extra: str) -> str:
    """Hash the weights below the cut, the architecture and the cut; independent of device.

    Args:
        layers: the encoder.
        trunk_blocks: blocks below the cut.
        extra: whatever else decides the trunk's output.
    """
    live = {id(t) for m in layers.live(trunk_blocks) for t in (*m.parameters(), *m.buffers())}
    digest = hashlib.blake2b(digest_size=HASH_BYTES)
    digest.update(f"{trunk_blocks}/{len(layers.blocks)} {extra}\n".encode())
    for name, module in layers.root.named_modules():
        kind = getattr(module, "stands_for", type(module).__name__)
        digest.update(f"{name} {kind} {_plain_attributes(module)}\n".encode())
    for name, tensor in (*layers.root.named_parameters(), *layers.root.named_buffers()):
        if id(tensor) not in live:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _plain_attributes(module: nn.Module) -> str:
    """Heads, strides, epsilons: numbers that change a module's output but are not among its weights."""
    plain = (bool, int, float, str, tuple)
    values = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, plain) and not key.startswith("_") and key not in _NOT_ARCHITECTURE
    }
    return repr(sorted(values.items()))


def is_compiled(block: nn.Module) -> bool:
    """Say whether ``block.compile`` was called: it runs what torch.compile makes of it."""
    return getattr(block, "_compiled_call_impl", None) is not None
