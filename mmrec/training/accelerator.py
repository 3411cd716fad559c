"""The accelerator of a training, on the very device that was asked for."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import patch_environment

from mmrec.errors import ConfigError


def open_accelerator(device: torch.device) -> Accelerator:
    """Return an accelerator on ``device``.

    accelerate by itself takes "cuda", which is the current card of whatever thread asks.  A card with a number is
    therefore told to it, so that every tensor goes there by number, and is made current, for it is the current card
    whose random numbers a validation must leave alone.

    Raises:
        ConfigError: this process trained on another device before, to which accelerate holds.
    """
    if device.type != "cuda" or device.index is None:
        return Accelerator(cpu=device.type == "cpu")
    torch.cuda.set_device(device)
    with patch_environment(accelerate_torch_device=str(device)):
        accelerator = Accelerator()
    if accelerator.device != device:
        raise ConfigError(
            f"a process that trains on {device} alone",
            got=f"one that has trained on {accelerator.device}",
            where="--device",
            fix="Start another process for it.",
        )
    return accelerator
