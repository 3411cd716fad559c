"""What a checkpoint must hold of a model, and what it may lack."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mmrec.errors import ArtifactError
from mmrec.training.snapshot import load_model_tensors, model_tensors


class Model(nn.Module):
    bonus: Tensor
    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.register_buffer("bonus", torch.zeros(()))
        self.register_buffer("table", torch.zeros(3))


def test_a_number_that_validation_chooses_may_be_younger_than_the_checkpoint() -> None:
    given, model = model_tensors(Model()), Model()
    given["layer.bias"] = torch.tensor([5.0])
    del given["bonus"]
    load_model_tensors(model, given, where="here")
    assert model.layer.bias.item() == 5
    assert model.bonus.item() == 0


@pytest.mark.parametrize("name", ["layer.weight", "table"])
def test_nothing_else_may_be_missing(name: str) -> None:
    given = model_tensors(Model())
    del given[name]
    with pytest.raises(ArtifactError, match=f"1 missing .'{name}'.*in here"):
        load_model_tensors(Model(), given, where="here")


def test_nothing_may_be_unknown() -> None:
    given = model_tensors(Model()) | {"other": torch.zeros(())}
    with pytest.raises(ArtifactError, match=r"1 unknown \['other'\]"):
        load_model_tensors(Model(), given, where="here")
