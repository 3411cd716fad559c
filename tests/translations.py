"""Tests that translate a model (torch.compile)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from jaxtyping import config as shape_checks


@pytest.fixture
def own_translations() -> Iterator[None]:
    """Begin and end with no translation, and without the checks of shapes, which no compiler can read."""
    before = torch._dynamo.config.recompile_limit
    torch._dynamo.reset()
    shape_checks.update("jaxtyping_disable", True)
    yield
    shape_checks.update("jaxtyping_disable", False)
    torch._dynamo.config.recompile_limit = before
    torch._dynamo.reset()
