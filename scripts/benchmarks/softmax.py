"""The softmax over a large catalogue against the matrix products that it cannot do without."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.measure import Row, alternate, extra_memory, ratios
from benchmarks.processes import afresh
from mmrec.objectives.logsumexp import weighted_logsumexp

SHAPES = {"small": (20_000, 64, 512), "cpu": (1_000_000, 256, 4_096), "gpu": (1_000_000, 256, 4_096)}
"""Items, width and targets."""
MOST_MEMORY = 512.0
TARGETS = {"cpu": 1.3, "cuda": 1.15}


def bare_products(targets: Tensor, items: Tensor, products: int, *, block: int) -> tuple[Tensor, Tensor]:
    """Do the products of a softmax and nothing else, into the same room every time.

    Two for a frozen catalogue (scores; scores times items), two more where items learn (scores again; their gradient).
    Returns what the last block left: products of its scores with its items, and with the last targets.
    """
    rows = min(len(targets), 512 if targets.device.type == "cpu" else len(targets))
    scores = targets.new_empty(rows, block)
    means, gradient = torch.empty_like(targets), items.new_empty(block, items.shape[1])
    for start in range(0, len(items), block):
        part = items[start : start + block]
        for first in range(0, len(targets), rows):
            own = targets[first : first + rows]
            room = scores[: len(own), : len(part)]
            torch.mm(own, part.T, out=room)
            torch.mm(room, part, out=means[first : first + rows])
            if products == 4:
                torch.mm(own, part.T, out=room)
                torch.mm(room.T, own, out=gradient[: len(part)])
    return means, gradient


def make(size: str, device: str) -> tuple[Tensor, Tensor]:
    """Draw items and targets."""
    num_items, dim, num_targets = SHAPES[size]
    torch.manual_seed(0)
    items = torch.nn.functional.normalize(torch.randn(num_items, dim, device=device), dim=1)
    return items, 10 * torch.nn.functional.normalize(torch.randn(num_targets, dim, device=device), dim=1)


def loss(targets: Tensor, candidates: Tensor) -> None:
    """Run the softmax forward and backward."""
    targets.grad = candidates.grad = None
    torch.autograd.backward(weighted_logsumexp(targets, candidates, chunk=8192).mean())


def extra_mb(size: str, mode: str, device: str) -> float:
    """Return the megabytes that a first call takes beside what it is given and, in full mode, the items' gradient."""
    items, targets = make(size, device)
    items.requires_grad_(mode == "full")
    targets.requires_grad_()
    # What the libraries take once: few enough for one thread, so that what it frees can be given back.
    loss(targets[:64].detach().requires_grad_(), items[:1024].detach().requires_grad_())
    with extra_memory(device) as memory:
        loss(targets, items)
    return memory["mb"] - (items.numel() * 4 / 1e6 if mode == "full" else 0.0)


def softmax(*, size: str, device: str, rounds: int) -> Iterator[Row]:
    """Bank mode (items are fixed) and full mode (items learn too): time over bare products, and memory."""
    num_items, dim, num_targets = SHAPES[size]
    kind = "cuda" if device.startswith("cuda") else "cpu"
    items, targets = make(size, device)
    fixed = targets.clone()
    targets.requires_grad_()
    where = f"{num_items:,} items x {dim}, {num_targets:,} targets"
    for mode, products in (("bank", 2), ("full", 4)):
        candidates = items.detach().requires_grad_(products == 4)
        block = 1024 if kind == "cpu" else 8192
        seconds = alternate(
            {
                "mmrec": partial(loss, targets, candidates),
                "bare": partial(bare_products, fixed, items, products, block=block),
            },
            rounds=rounds,
            device=device,
        )
        candidates.grad = None
        details = {"mmrec s": min(seconds["mmrec"]), f"{products} bare products s": min(seconds["bare"])}
        yield Row(
            "softmax",
            f"{mode} mode over {products} bare products, {where}",
            ratios(seconds["mmrec"], seconds["bare"]),
            bound="at most",
            target=None if size == "small" else TARGETS[kind],
            details=details,
        )
        yield Row(
            "softmax",
            f"{mode} mode, extra peak memory" + (" beside the gradient" if products == 4 else ""),
            (afresh(extra_mb, size, mode, device=device),),
            bound="at most",
            target=MOST_MEMORY,
            unit="MB",
        )
