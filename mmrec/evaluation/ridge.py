"""Ridge regression from one space to another, its penalty chosen by leaving one row out, in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)


@dataclass(frozen=True)
class Ridge:
    """A linear map with an intercept.

    Args:
        weight: shape (inputs, outputs).
        input_mean: shape (inputs,), of the rows it was fitted on.
        output_mean: shape (outputs,), of the same rows.
        penalty: the chosen one, in units of the inputs' mean variance (times rows).
    """

    weight: Float[Tensor, "inputs outputs"]
    input_mean: Float[Tensor, " inputs"]
    output_mean: Float[Tensor, " outputs"]
    penalty: float

    def __call__(self, inputs: Float[Tensor, "rows inputs"]) -> Float[Tensor, "rows outputs"]:
        """Map rows."""
        return (inputs.to(self.weight) - self.input_mean) @ self.weight + self.output_mean


def fit_ridge(
    inputs: Float[Tensor, "rows inputs"],
    outputs: Float[Tensor, "rows outputs"],
    *,
    penalties: Sequence[float] = PENALTIES,
) -> Ridge:
    """Fit with each penalty and keep the one with the least squared error on rows left out (PRESS, Allen 1974).

    The error of a row that was left out is its residual over one minus its leverage, so nothing is fitted twice.

    Args:
        inputs: at least two rows.
        outputs: what each row should become.
        penalties: to choose from, in units of the inputs' mean variance over the dimensions they use (times rows).
    """
    assert len(inputs) >= 2
    inputs, outputs = inputs.double(), outputs.double()
    input_mean, output_mean = inputs.mean(dim=0), outputs.mean(dim=0)
    centred, wanted = inputs - input_mean, outputs - output_mean
    spread, basis = torch.linalg.eigh(centred.T @ centred)
    spread = spread.clamp(min=0)
    unit = float(spread.sum()) / min(centred.shape) or 1.0
    turned = centred @ basis
    shared = turned.T @ wanted
    best = (float("inf"), penalties[0])
    for penalty in penalties:
        shrunk = spread + penalty * unit
        residual = wanted - turned @ (shared / shrunk.unsqueeze(1))
        leverage = 1 / len(inputs) + (turned.square() / shrunk).sum(dim=1, keepdim=True)
        best = min(best, (float((residual / (1 - leverage)).square().mean()), penalty))
    weight = basis @ (shared / (spread + best[1] * unit).unsqueeze(1))
    return Ridge(weight, input_mean, output_mean, best[1])
