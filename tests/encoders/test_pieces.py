"""Batches in pieces, several at once on a CPU: the same states, in the caller's modes, and never more than is worth it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from mmrec.contents import ImageContent, TextContent
from mmrec.encoders import image as image_module
from mmrec.encoders import packing
from mmrec.encoders.image import ImageEncoder
from mmrec.encoders.pieces import free_threads, run_pieces
from mmrec.encoders.text import TextEncoder
from mmrec.encoders.timm_image import TimmStack
from mmrec.encoders.transformers_text import TransformersStack
from mmrec.threads import count_pieces
from tests.encoders.tiny_models import bert, vit

CPU = torch.device("cpu")


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("size", "threads", "count"),
    [
        (5, 1, 1),
        (40, 1, 3),
        (16, 2, 2),  # two of eight
        (15, 2, 1),  # not enough for both
        (33, 2, 4),
        (64, 4, 4),
        (65, 4, 8),
        (64, 16, 4),  # sixteen of four would not be worth it
    ],
)
def test_every_thread_gets_equally_many(size: int, threads: int, count: int) -> None:
    assert count_pieces(size, most=16, least=8, threads=threads) == count


class TestFree:
    def test_as_many_as_torch_has_where_nothing_is_learnt(self, two_threads: None) -> None:
        assert free_threads(CPU, []) == 1, "a gradient belongs to a thread"
        with torch.no_grad():
            assert free_threads(CPU, [nn.Linear(1, 1)]) == 2
            assert free_threads(torch.device("cuda"), []) == 1
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert free_threads(CPU, []) == 1

    def test_one_for_what_is_compiled(self, two_threads: None) -> None:
        block = nn.Linear(1, 1)
        block.compile()
        with torch.no_grad():
            assert free_threads(CPU, [block]) == 1


class TestRun:
    def test_in_order_in_the_modes_of_the_caller(self, two_threads: None) -> None:
        weight = nn.Parameter(torch.ones(1))
        names, threads = set[str](), set[int]()

        def run(piece: Tensor) -> Tensor:
            names.add(threading.current_thread().name)
            threads.add(torch.get_num_threads())
            assert not torch.is_grad_enabled()
            return piece * weight

        pieces = list(torch.arange(8.0).split(1))
        for mode in (torch.no_grad(), torch.inference_mode()):
            with mode:
                found = torch.cat(run_pieces(run, pieces, threads=2))
                assert found.is_inference() == torch.is_inference_mode_enabled()
            assert found.tolist() == list(range(8))
            assert not found.requires_grad
        assert threads == {1}
        assert all(name.startswith("mmrec-core") for name in names)
        assert torch.get_num_threads() == 2

    def test_by_the_caller_where_there_are_too_few(self, two_threads: None) -> None:
        names = []
        with torch.no_grad():
            run_pieces(lambda piece: names.append(threading.current_thread()) or piece, [torch.ones(1)], threads=2)
        assert names == [threading.current_thread()]

    def test_an_error_is_the_callers_and_threads_come_back(self, two_threads: None) -> None:
        def run(piece: Tensor) -> Tensor:
            raise ValueError("no")

        with torch.no_grad(), pytest.raises(ValueError, match="no"):
            run_pieces(run, [torch.ones(1)] * 2, threads=2)
        assert torch.get_num_threads() == 2


class TestEncoders:
    """The naive twin: everything at once, in the caller's thread."""

    @pytest.mark.parametrize("trunk_blocks", [0, 1, 2])
    def test_captions(self, trunk_blocks: int, two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
        encoder = TextEncoder(TransformersStack(bert().eval()), trunk_blocks=trunk_blocks).eval()
        lengths = torch.randint(1, 20, (90,), generator=torch.Generator().manual_seed(0))
        content = TextContent(torch.arange(int(lengths.sum())) % 20, lengths)
        found = self.both(encoder, content, packing, "TOKENS_FOR_A_THREAD", 64, monkeypatch)
        torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-5)

    def test_pieces_of_captions_keep_to_a_bound(self) -> None:
        generator = torch.Generator().manual_seed(1)
        for _ in range(50):
            sizes = torch.randint(1, 30, (60,), generator=generator).numpy().astype("int64")
            stops = packing._cut(sizes, most=100, threads=2)
            starts = [0, *stops[:-1]]
            assert stops[-1] == len(sizes)
            assert all(0 < sizes[start:stop].sum() <= 100 for start, stop in zip(starts, stops, strict=True))

    def test_pictures(self, two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
        stack = TimmStack(vit().eval(), side=32)
        encoder = ImageEncoder(
            stack, trunk_blocks=len(stack.layers.blocks), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
        ).eval()
        side = stack.side
        shape = (12, 3, side, side)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        found = self.both(encoder, ImageContent(pixels), image_module, "PICTURES_FOR_A_THREAD", 4, monkeypatch)
        torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-5)

    def both(
        self,
        encoder: TextEncoder | ImageEncoder,
        content: TextContent | ImageContent,
        module: object,
        least: str,
        size: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> list[Tensor]:
        found, names = [], set[str]()
        handles = [
            inner.register_forward_pre_hook(lambda *_: names.add(threading.current_thread().name))
            for inner in encoder.model.modules()
        ]
        for value, thread in ((1 << 30, "MainThread"), (size, "mmrec-core")):
            monkeypatch.setattr(module, least, value)
            names.clear()
            before = encoder.work.copy()
            with torch.no_grad():
                found.append(encoder(content).states)
            # A thread that is done may take the next piece as well.
            assert {name.partition("_")[0] for name in names} == {thread}
            assert encoder.work.since(before).encoded == len(content)
        for handle in handles:
            handle.remove()
        return found
