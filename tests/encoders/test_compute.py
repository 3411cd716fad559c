"""Encoders that run in bfloat16: near float32, whatever is inside; what needs its digits keeps them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mmrec.contents import Content, ImageContent, TextContent
from mmrec.encoders.clip import load_open_clip, open_clip_image_stack, open_clip_text_stack
from mmrec.encoders.compute import emulates_bfloat16
from mmrec.encoders.cut import CutEncoder
from mmrec.encoders.image import ImageEncoder, ImageStack
from mmrec.encoders.text import TextEncoder
from mmrec.encoders.timm_image import TimmStack
from mmrec.encoders.transformers_text import TransformersStack
from mmrec.errors import ConfigError
from tests.encoders.test_transformers_text import CONFIGS, build
from tests.encoders.tiny_models import MEAN, STD, bert, efficientnet, open_clip_folder, vit

NEAR = 0.03
"""Largest difference as a share of the largest state: bfloat16 keeps eight bits, and these are three blocks."""
LENGTHS = [3, 9, 4, 12, 7, 4]
TEXTS = TextContent(torch.arange(5, 5 + sum(LENGTHS)) % 18 + 5, torch.tensor(LENGTHS))


def pictures(side: int) -> ImageContent:
    generator = torch.Generator().manual_seed(1)
    return ImageContent(torch.randint(0, 256, (5, 3, side, side), generator=generator, dtype=torch.uint8))


def image_encoder(stack: ImageStack, cut: int) -> ImageEncoder:
    return ImageEncoder(stack, trunk_blocks=cut, mean=MEAN, std=STD)


def check(encoder: CutEncoder, content: Content) -> None:
    """States before and after, of raw contents and past the trunk; and no gradient is wanted."""
    encoder.train(False)

    def states() -> list[Tensor]:
        with torch.inference_mode():
            found = [encoder(content).states]
            return [*found, encoder.trunk(content).states] if encoder.has_trunk else found

    before = states()
    encoder.to_bfloat16()
    after = states()
    for one, other in zip(before, after, strict=True):
        assert other.dtype == torch.float32
        assert float((one - other).abs().max()) <= NEAR * float(one.abs().max())
        assert not torch.equal(one, other), "it ran in float32"


@pytest.mark.parametrize("cut", [0, 2, 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_text_encoders(name: str, cut: int) -> None:
    check(TextEncoder(TransformersStack(build(name).float()), trunk_blocks=cut), TEXTS)


@pytest.mark.parametrize("cut", [0, 2, 3])
def test_vision_transformers(cut: int) -> None:
    check(image_encoder(TimmStack(vit(), side=32), cut), pictures(32))


def test_convolutions_stay_as_they_are() -> None:
    encoder = image_encoder(TimmStack(efficientnet(), side=64), 2)
    encoder.to_bfloat16()
    assert {tensor.dtype for tensor in encoder.model.state_dict().values() if tensor.is_floating_point()} == {
        torch.float32
    }


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_both_halves_of_a_pair(tmp_path: Path, cut: int) -> None:
    pair = load_open_clip(str(open_clip_folder(tmp_path / "pair")))
    check(TextEncoder(open_clip_text_stack(pair), trunk_blocks=cut), TEXTS)
    check(image_encoder(open_clip_image_stack(pair), cut), pictures(32))


def test_rotary_frequencies_keep_their_digits() -> None:
    encoder = TextEncoder(TransformersStack(build("modernbert").float()), trunk_blocks=0)
    encoder.to_bfloat16()
    frequencies = {name: buffer for name, buffer in encoder.named_buffers() if name.endswith("inv_freq")}
    assert frequencies
    assert {buffer.dtype for buffer in frequencies.values()} == {torch.float32}
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.bfloat16}


class Twice(nn.Module):
    """Passes states on; in bfloat16 it turns them round, or refuses them."""

    def __init__(self, layer: nn.Module, *, refuses: bool) -> None:
        super().__init__()
        self.layer, self._refuses = layer, refuses

    def forward(self, *given: Tensor, **named: Tensor) -> Tensor:
        found: Tensor = self.layer(*given, **named)
        if found.dtype != torch.bfloat16:
            return found
        if self._refuses:
            raise RuntimeError("no such kernel")
        return -found


@pytest.mark.parametrize(("refuses", "got"), [(True, "no such kernel"), (False, "another output")])
def test_a_network_that_does_not_bear_it(*, refuses: bool, got: str) -> None:
    model = vit()
    model.norm = Twice(model.norm, refuses=refuses)
    encoder = image_encoder(TimmStack(model, side=32), 0)
    with pytest.raises(ConfigError, match=f"runs in bfloat16, got {got}.*compute-dtype.*float32"):
        encoder.to_bfloat16()


def test_what_is_known_of_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for found, slow in (
        ({"architecture": "x86_64", "amx_bf16": False, "avx512_bf16": False}, True),
        ({"architecture": "x86_64", "amx_bf16": False, "avx512_bf16": True}, False),
        ({"architecture": "aarch64"}, False),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found, raising=False)
        assert emulates_bfloat16(cpu) is slow
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not emulates_bfloat16(cpu), "nothing is known"
    assert not emulates_bfloat16(torch.device("mps"))


def test_modes_stay(tmp_path: Path) -> None:
    encoder = TextEncoder(TransformersStack(bert()), trunk_blocks=1)
    encoder.to_bfloat16()
    assert encoder.training
    encoder.train(False)
    encoder.to_bfloat16()
    assert not encoder.training
