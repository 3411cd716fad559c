"""The accelerator of a training, on the very device that was asked for."""

from __future__ import annotations

from datetime import timedelta

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import patch_environment

from mmrec.errors import ConfigError
from mmrec.process import launched_processes


def open_accelerator(device: torch.device) -> Accelerator:
    """Return an accelerator on ``device``, which joins the processes that a launcher started with this one.

    accelerate by itself takes "cuda", which is the current card of whatever thread asks.  A card with a number is
    therefore told to it, so that every tensor goes there by number, and is made current, for it is the current card
    whose random numbers a validation must leave alone.

    Raises:
        ConfigError: several processes were started for one card, or have trained on another kind of device before.
    """
    if launched_processes() == 1:
        # accelerate remembers the device of the first training of a process, and gives it to all that follow.
        AcceleratorState._reset_state(reset_partial_state=True)
    if device.type == "cuda" and device.index is not None:
        accelerator = _on_card(device)
    else:
        # A process may have to wait for another that encodes a whole catalogue; one that dies is its launcher's affair.
        patience = InitProcessGroupKwargs(timeout=timedelta(days=1))
        accelerator = Accelerator(cpu=device.type == "cpu", kwargs_handlers=[patience])
    if accelerator.device.type != device.type or device.index not in (None, accelerator.device.index):
        raise ConfigError(
            f"a process that trains on {device} alone",
            got=f"one that has trained on {accelerator.device}",
            where="--device",
            fix="Start another process for it.",
        )
    return accelerator


def _on_card(device: torch.device) -> Accelerator:
    if launched_processes() > 1:
        raise ConfigError(
            "one process on one card",
            got=f"{launched_processes()} processes on {device}",
            where="--device",
            fix="Leave --device out: a launcher gives each process a card of its own.",
        )
    torch.cuda.set_device(device)
    with patch_environment(accelerate_torch_device=str(device)):
        return Accelerator()
