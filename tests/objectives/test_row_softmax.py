"""One pass over a block equals torch's several, by the kernel as by torch itself."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmrec.objectives import logsumexp, row_softmax
from mmrec.objectives.logsumexp import Window, weighted_logsumexp
from mmrec.objectives.negatives import Pairs
from mmrec.objectives.row_softmax import softmax_rows

ROOT = Path(__file__).parent.parent.parent
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
LOWEST = torch.finfo(torch.float32).min / 4
WIDTHS = [1, 2, 7, 64, 129, 1000]

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
interpreted = pytest.mark.skipif(not INTERPRETED, reason="run by test_kernel_under_the_interpreter")


@pytest.fixture
def kernel_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the kernel for tensors of the CPU: Triton's interpreter runs it."""
    for module in (row_softmax, logsumexp):
        monkeypatch.setattr(module, "fuses", lambda like: like.dtype == torch.float32)


def block(width: int, *, weighted: bool) -> tuple[Tensor, Tensor | None]:
    """Scores with the hard rows, and log weights with one that leaves its candidate out."""
    generator = torch.Generator().manual_seed(width)
    scores = 5 * torch.randn(9, width, generator=generator)
    scores[1] += 1e4
    scores[2] -= 1e4
    scores[3] = LOWEST  # no candidate
    scores[4, 1:] = LOWEST  # one candidate
    scores[5, 1:] = -torch.inf
    scores[6] = -torch.inf
    scores[7, width // 2] = torch.nan
    scores[8, width // 2] = torch.inf
    weights = torch.randn(width, generator=generator)
    weights[width // 2 + 1 :][:1] = LOWEST
    return scores, weights if weighted else None


def check(width: int, device: str, *, weighted: bool, in_place: bool, dtype: torch.dtype = torch.float32) -> None:
    scores, weights = block(width, weighted=weighted)
    sums = scores.double() if weights is None else scores.double() + weights.double()
    room = scores.to(device, dtype)
    out = room if in_place else torch.empty_like(room)
    log_sums = softmax_rows(room, None if weights is None else weights.to(device, dtype), out=out)
    assert log_sums.shape == (9, 1)
    # Scores of 10,000 have steps of 0.001 in float32, which a weight is rounded to.
    limits = {"rtol": 1e-4, "atol": 2e-3} if weighted else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(out.double().cpu(), sums.softmax(1), equal_nan=True, **limits)
    # Nothing but infinities, or one not a number, gives no number; so does every way of computing it here.
    expected = sums.logsumexp(1, keepdim=True).where(sums.softmax(1)[:, :1].isfinite(), torch.nan)
    torch.testing.assert_close(log_sums.double().cpu(), expected, equal_nan=True, **limits)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_torch_by_itself(width: int, weighted: bool, in_place: bool) -> None:
    check(width, "cpu", weighted=weighted, in_place=in_place)
    check(width, "cpu", weighted=weighted, in_place=in_place, dtype=torch.float64)


def test_by_hand() -> None:
    scores, out = torch.tensor([[0.0, math.log(3.0), 0.0]]), torch.empty(1, 3)
    log_sums = softmax_rows(scores, torch.tensor([math.log(2.0), 0.0, math.log(5.0)]), out=out)
    assert log_sums.exp().item() == pytest.approx(2 + 3 + 5)
    assert out.tolist()[0] == pytest.approx([0.2, 0.3, 0.5])


def test_a_cpu_has_no_kernel() -> None:
    assert not row_softmax.fuses(torch.zeros(1))


def test_triton_is_imported_only_where_it_is_used() -> None:
    script = "import sys, mmrec.objectives.logsumexp\nsys.exit('mmrec.objectives.row_kernel' in sys.modules)\n"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


@pytest.mark.skipif(INTERPRETED, reason="already under the interpreter")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_kernel_under_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--noconftest", "-p", "no:cacheprovider", "-k", "interpreted", __file__],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout


@interpreted
@pytest.mark.usefixtures("kernel_on_cpu")
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("width", [1, 7, 129])
def test_interpreted_kernel(width: int, weighted: bool, in_place: bool) -> None:
    check(width, "cpu", weighted=weighted, in_place=in_place)


@interpreted
@pytest.mark.usefixtures("kernel_on_cpu")
@pytest.mark.parametrize("weighted", [False, True])
def test_interpreted_row_wider_than_the_kernel_takes(monkeypatch: pytest.MonkeyPatch, weighted: bool) -> None:
    monkeypatch.setattr(row_softmax, "WIDEST", 64)
    check(65, "cpu", weighted=weighted, in_place=True)


@interpreted
@pytest.mark.usefixtures("kernel_on_cpu")
@pytest.mark.parametrize("unweighted", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_interpreted_sum_with_every_option(monkeypatch: pytest.MonkeyPatch, weighted: bool, unweighted: bool) -> None:
    monkeypatch.setattr(logsumexp, "CPU_BLOCK", (8, 32))
    compare_with_float64("cpu", weighted=weighted, unweighted=unweighted, chunk=32)


@needs_gpu
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("width", [*WIDTHS, 8192, 10_000, 16_384, 20_000])
def test_gpu_rows(width: int, weighted: bool, in_place: bool) -> None:
    check(width, "cuda", weighted=weighted, in_place=in_place)


@needs_gpu
@pytest.mark.parametrize("size", [(64, 8), (1 << 20, 1 << 13)])
@pytest.mark.parametrize("unweighted", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_gpu_sum_with_every_option(
    monkeypatch: pytest.MonkeyPatch, weighted: bool, unweighted: bool, size: tuple[int, int]
) -> None:
    monkeypatch.setattr(logsumexp, "DEVICE_BLOCK", size[0])
    monkeypatch.setattr(logsumexp, "DEVICE_COLUMNS", size[1])
    compare_with_float64("cuda", weighted=weighted, unweighted=unweighted, chunk=size[1])


def compare_with_float64(device: str, *, weighted: bool, unweighted: bool, chunk: int) -> None:
    """Compare value and gradients, under every option at once and under each alone, with those of float64 on the CPU."""
    generator = torch.Generator().manual_seed(3)
    targets, candidates = torch.randn(13, 6, generator=generator), torch.randn(45, 6, generator=generator)
    log_weights = torch.randn(45, generator=generator)
    log_weights[::7] = -torch.inf

    def some_pairs(share: float) -> Pairs:
        return Pairs(*(torch.rand(13, 45, generator=generator) < share).nonzero(as_tuple=True))

    plain, barred = some_pairs(0.2), some_pairs(0.3)
    barred = Pairs(  # the third target has no candidate left
        torch.cat([barred.target_index, torch.full((45,), 2)]), torch.cat([barred.item_index, torch.arange(45)])
    )
    since, until = (torch.randint(0, 9, (n,), generator=generator) for n in (45, 13))
    for excluded, window in ((True, True), (True, False), (False, True), (False, False)):

        def sums(device: str, dtype: torch.dtype, excluded: bool = excluded, window: bool = window) -> list[Tensor]:
            def there(pairs: Pairs) -> Pairs:
                return Pairs(pairs.target_index.to(device), pairs.item_index.to(device))

            leaves = [t.to(device, dtype).requires_grad_() for t in (targets, candidates)]
            value = weighted_logsumexp(
                leaves[0],
                leaves[1],
                chunk=chunk,
                log_weights=log_weights.to(device, dtype) if weighted else None,
                unweighted=there(plain) if unweighted else None,
                excluded=there(barred) if excluded else None,
                window=Window(since.to(device), until.to(device)) if window else None,
            )
            return [value.detach(), *torch.autograd.grad(value[value.isfinite()].square().sum(), leaves)]

        for one, other in zip(sums(device, torch.float32), sums("cpu", torch.float64), strict=True):
            torch.testing.assert_close(one.double().cpu(), other, rtol=1e-4, atol=1e-4)
