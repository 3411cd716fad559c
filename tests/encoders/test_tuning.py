"""From a tuning mode to a cut."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmrec.encoders.tuning import Layers, choose_trunk_blocks, freeze_below, group_by_depth, set_modes
from mmrec.errors import ConfigError


def network() -> Layers:
    blocks = [nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5)) for _ in range(3)]
    root = nn.ModuleDict({"stem": nn.Linear(2, 2), "blocks": nn.Sequential(*blocks), "head": nn.LayerNorm(2)})
    return Layers(root, tuple(blocks), (root["head"],))


@pytest.mark.parametrize(
    ("mode", "blocks", "cut"), [("frozen", 0, 3), ("full", 0, 0), ("top", 1, 2), ("top", 2, 1), ("top", 3, 0)]
)
def test_cut(mode: str, blocks: int, cut: int) -> None:
    assert choose_trunk_blocks(mode, blocks=blocks, layers=network()) == cut  # type: ignore[arg-type]


def test_more_blocks_than_there_are() -> None:
    with pytest.raises(ConfigError, match="between 1 and 3 blocks, got 4, in encoders.text.tuning"):
        choose_trunk_blocks("top", blocks=4, layers=network(), where="encoders.text.tuning")


@pytest.mark.parametrize(("cut", "groups"), [(0, [6, 4, 4, 2]), (1, [6, 4]), (2, [6]), (3, [])])
def test_groups_go_from_the_top_down_with_the_head_first(cut: int, groups: list[int]) -> None:
    layers = network()
    live = nn.Sequential(*layers.live(cut))
    freeze_below(layers, cut, run_live=lambda: sum((p.sum() for p in live.parameters()), torch.zeros(())))
    grouped = group_by_depth(layers, cut)
    assert [len(group) for group in grouped] == groups
    if groups:
        assert grouped[0][0] is layers.blocks[2][0].weight


def test_only_live_modules_train_and_no_batch_norm_does() -> None:
    layers = network()
    set_modes(layers, 1, training=True)
    assert [block[2].training for block in layers.blocks] == [False, True, True]
    assert not any(block[1].training for block in layers.blocks)
    assert not layers.root["stem"].training
    set_modes(layers, 0, training=True)
    assert layers.root["stem"].training
    assert not any(block[1].training for block in layers.blocks)
