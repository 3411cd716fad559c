"""The processes (ranks) that train one model together: what they add up, agree on and wait for.

Each rank encodes its share of a batch's items and users and has a summand of its loss (see :class:`mmrec.batch.Share`);
the gradients, added up, are those of the whole batch in one process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.tensor import DTensor

BUCKET_NUMBERS = 1 << 24
"""Gradients are added up this many numbers at a time, at most: enough to fill a line, little beside a model."""


@dataclass(frozen=True)
class Ranks:
    """A process among those that train together; alone, nothing is sent.

    Args:
        rank: number of this process, from 0.
        count: processes.
        device: where this one computes, and what it sends lies.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = torch.device("cpu")

    @classmethod
    def of(cls, accelerator: Accelerator) -> Ranks:
        """Return this process's place among those that a launcher started."""
        return cls(accelerator.process_index, accelerator.num_processes, accelerator.device)

    @property
    def is_first(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over all ranks, without a gradient."""
        total = values.detach()
        if self.count > 1:
            total = total.clone()
            dist.all_reduce(total)
        return total

    def any(self, flag: bool) -> bool:  # noqa: FBT001  (a value to be told, not a switch)
        """Return whether any rank says so."""
        return bool(self.sum(torch.tensor(int(flag), device=self.device)))

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradients of whole parameters by their sums over all ranks; None stays where no rank has one.

        Those of sharded parameters are sums already.

        It happens after the backward pass, not within it as in DistributedDataParallel: the backward pass sends item
        vectors' gradients already, and both kinds of messages would have to come in the same order on every rank,
        whatever its share of the batch lacks.
        """
        own = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
        if self.count == 1 or not own:
            return
        used = self.sum(torch.tensor([parameter.grad is not None for parameter in own], device=self.device).int())
        used_anywhere = [parameter for parameter, count in zip(own, used.tolist(), strict=True) if count]
        for parameter in used_anywhere:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([parameter.grad for parameter in used_anywhere if parameter.grad is not None]):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            dist.all_reduce(flat)
            totals = torch.split(flat, [gradient.numel() for gradient in bucket])
            for gradient, total in zip(bucket, totals, strict=True):
                gradient.copy_(total.view_as(gradient))

    def agree(self, tensors: Iterable[Tensor]) -> None:
        """Give all ranks the first one's values, in place."""
        if self.count > 1:
            with torch.no_grad():
                for tensor in tensors:
                    # What lies in another order of axes cannot be sent as it is.
                    sent = tensor.contiguous()
                    dist.broadcast(sent, src=0)
                    tensor.copy_(sent)

    def agree_on(self, numbers: Sequence[float]) -> list[float]:
        """Return the first rank's numbers."""
        sent = torch.tensor(list(numbers), dtype=torch.float64)
        sent = sent.to(self.device)
        self.agree([sent])
        values: list[float] = sent.tolist()
        return values

    def collect(self, tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Return every rank's tensors, on the CPU; names, shapes and types are the same on all."""
        if self.count == 1:
            return [dict(tensors)]
        found: list[dict[str, Tensor]] = [{} for _ in range(self.count)]
        for name, tensor in tensors.items():
            own = tensor.to(self.device).contiguous()
            everywhere = [torch.empty_like(own) for _ in range(self.count)]
            dist.all_gather(everywhere, own)
            for rank, part in enumerate(everywhere):
                found[rank][name] = part.cpu()
        return found


ALONE = Ranks()


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Group neighbours of one type up to ``BUCKET_NUMBERS``; a larger one is a group of its own."""
    group: list[Tensor] = []
    for gradient in gradients:
        full = sum(member.numel() for member in group) + gradient.numel() > BUCKET_NUMBERS
        if group and (full or gradient.dtype != group[0].dtype):
            yield group
            group = []
        group.append(gradient)
    if group:
        yield group
