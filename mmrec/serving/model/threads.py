"""How many threads torch takes in each thread of the service.

A request's own work on tensors is a few hundred small operations: handing them to other threads takes longer than doing
them.  Only where posts are encoded are there operations worth sharing.
"""

from __future__ import annotations

import torch

_ALL = torch.get_num_threads()
"""As the process began; later threads take over what was last said, in whatever thread."""


def use_one_thread() -> None:
    """Let operations of the calling thread run in it alone."""
    torch.set_num_threads(1)


def use_all_threads() -> None:
    """Share out operations of the calling thread among as many as the process began with."""
    torch.set_num_threads(_ALL)
