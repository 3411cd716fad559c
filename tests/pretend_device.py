"""A device that is none: it lies on the CPU, but says which operations run there and which the host would wait for.

Its tensors call themselves ``meta`` ones, so that code takes the paths of a device, and hold their values on the CPU.
Mixing them with tensors of the host is refused as a GPU refuses it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

DEVICE = torch.device("meta")
WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
    "equal",
    "is_nonzero",
}
"""Operations whose result, or its shape, the host must know."""


COPIES = {"_to_copy", "copy_"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
FREE = {"detach", "alias", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view"}
"""Operations that start nothing on a device; views are found otherwise."""


class OnDevice(torch.Tensor):
    """A tensor of the pretended device; ``inner`` holds its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnDevice:
        made: OnDevice = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        made.inner = inner
        return made

    def tolist(self) -> Any:
        """Bring the values to the host, which waits for them."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class PretendDevice(TorchDispatchMode):
    """Counts what runs on the device while it is active.

    Attributes:
        operations: by name, everything that a device would run.
        waits: by name, what the host would wait for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __enter__(self) -> PretendDevice:
        self._autocast = torch.autocast
        torch.autocast = self._without_autocast  # type: ignore[assignment, misc]
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        torch.autocast = self._autocast  # type: ignore[misc]

    def _without_autocast(self, kind: str, *, enabled: bool = True) -> AbstractContextManager[object]:
        """Stand in for torch.autocast, which does not know the device."""
        return nullcontext() if kind == DEVICE.type else self._autocast(kind, enabled=enabled)

    def note(
        self,
        func: Any,
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        there: Sequence[Tensor],
        here: Sequence[Tensor],
        arrives: bool,
    ) -> None:
        """Count one operation that takes or gives tensors of the device."""
        if not func.is_view and name not in FREE:
            self.operations[name] += 1
        if name in COPIES:
            crosses = bool(here) or not arrives
            blocks = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
            waits = crosses and blocks
        elif name in INDEXING:
            places = [value for value in args[1] if value is not None]
            waits = bool(here) or any(value.dtype in {torch.bool, torch.uint8} for value in places)
        elif name == "repeat_interleave":
            waits = kwargs.get("output_size") is None
        else:
            waits = name in WAITING
        if waits:
            self.waits[name] += 1

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {}, self)


def send(module: nn.Module) -> nn.Module:
    """Put a module's parameters and buffers on the device, in place."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(OnDevice(parameter.detach()), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = OnDevice(buffer.detach())
    return module


def back(tensor: Tensor | None) -> Tensor | None:
    """Return a tensor's values, on the CPU."""
    return tensor.inner if isinstance(tensor, OnDevice) else tensor


def _run(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], counts: PretendDevice | None = None) -> Any:
    name = func._schema.name.removeprefix("aten::")
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    there = [value for value in tensors if isinstance(value, OnDevice)]
    here = [value for value in tensors if not isinstance(value, OnDevice)]
    target = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    arrives = bool(there) if target is None else target == DEVICE
    if there and here and name not in COPIES | INDEXING and any(value.ndim for value in here):
        raise RuntimeError(f"{name}: tensors of the host among those of the device")
    if counts is not None and (there or arrives):
        counts.note(func, name, args, kwargs, there=there, here=here, arrives=arrives)
    inner_args, inner_kwargs = tree_map_only(OnDevice, lambda tensor: tensor.inner, (args, dict(kwargs)))
    if target == DEVICE:
        inner_kwargs["device"] = torch.device("cpu")
    found = func(*inner_args, **inner_kwargs)
    if not arrives or (name == "copy_" and not isinstance(args[0], OnDevice)):
        return args[0] if name == "copy_" else found
    changed = {id(value.inner): value for value in there}
    return tree_map_only(Tensor, lambda value: changed[id(value)] if id(value) in changed else OnDevice(value), found)
