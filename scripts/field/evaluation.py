"""Ranks by sorting the whole catalogue for every user.

IDvs.MoRec, MicroLens and PMMRec score a batch of users against all items, then take each user in turn: the scores of the
history are set to minus infinity, ``argsort`` orders the catalogue, and the target's rank is read off the order.
(Source: ``metrics.py`` / ``eval_model`` of these repositories.)
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mmrec.feed.histories import Histories
from mmrec.feed.splits import Cases

BATCH = 256


def ranks_by_sorting(users: Tensor, items: Tensor, cases: Cases, histories: Histories) -> npt.NDArray[np.int64]:
    """Return the rank (from 1) of each user's one target among the items that are not in the history."""
    ranks = np.empty(len(users), np.int64)
    rows = histories.item_rows
    for start in range(0, len(users), BATCH):
        scores = users[start : start + BATCH] @ items.T
        for offset, row in enumerate(scores):
            case = start + offset
            target = int(rows[cases.target_starts[case]])
            history = rows[histories.offsets[cases.user_rows[case]] : cases.history_stops[case]]
            seen = np.setdiff1d(history, [target])
            row[torch.from_numpy(seen).to(row.device)] = -torch.inf
            order = torch.argsort(row, descending=True)
            ranks[case] = int((order == target).nonzero()[0, 0]) + 1
    return ranks
