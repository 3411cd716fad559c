"""timm models: cut anywhere, they compute what the library computes; what cannot be loaded says why."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import nn

from mmrec.contents import ImageContent
from mmrec.encoders.image import ImageEncoder, round_number, run_filled
from mmrec.encoders.timm_image import TimmStack, load_timm_model
from mmrec.encoders.tuning import choose_trunk_blocks
from mmrec.errors import ConfigError
from tests.encoders.tiny_models import VIT_SHAPE, efficientnet, lively, vit

HALF = (0.5, 0.5, 0.5)
SWIN = {"img_size": 64, "window_size": 2, "embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (2, 2, 2, 2)}


def make(name: str) -> tuple[nn.Module, int]:
    torch.manual_seed(0)
    match name:
        case "vit":
            return vit(), 32
        case "vit_average":
            return vit(global_pool="avg"), 32
        case "vit_no_class":
            return vit(class_token=False, global_pool="avg"), 32
        case "efficientnet":
            return efficientnet(), 64
        case "swin":
            return timm.create_model("swin_tiny_patch4_window7_224", num_classes=0, **SWIN), 64
        case _:
            return timm.create_model(name, num_classes=0), 64


def pictures(side: int, count: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(1)).byte()


def encode(model: nn.Module, side: int, cut: int, grid: int = 0) -> ImageEncoder:
    return ImageEncoder(TimmStack(model, side=side), trunk_blocks=cut, mean=HALF, std=HALF, token_grid=grid)


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        *(("vit", cut) for cut in (0, 1, 2, 3)),
        *(("vit_average", cut) for cut in (0, 2)),
        ("vit_no_class", 1),
        *(("efficientnet", cut) for cut in (0, 5, 7)),
        *(("resnet10t", cut) for cut in (0, 2, 4)),
        ("mobilenetv3_small_050", 3),
        ("convnext_atto", 2),
        *(("swin", cut) for cut in (0, 1)),
    ],
)
def test_equals_forward_features_in_value_and_gradient(name: str, cut: int) -> None:
    model, side = make(name)
    theirs, _ = make(name)
    encoder, pixels = encode(model, side, cut).eval(), pictures(side)
    states = encoder(ImageContent(pixels)).states
    features = theirs.eval().forward_features((pixels / 255 - 0.5) / 0.5)
    if features.ndim == 4 and name != "swin":
        features = features.permute(0, 2, 3, 1)
    expected = features.flatten(0, -2)
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-5 * scale)
    live = {key: p for key, p in encoder.model.named_parameters() if p.requires_grad}
    assert bool(live) == (cut < encoder.num_blocks)
    if live:
        (states / scale).square().sum().backward()
        (expected / scale).square().sum().backward()
        reference = dict(theirs.named_parameters())
        for key, parameter in live.items():
            size = float(reference[key].grad.abs().max())
            # Below normalisation large terms cancel: float32 itself is 1.5e-3 of the largest away from float64.
            torch.testing.assert_close(parameter.grad, reference[key].grad, rtol=1e-3, atol=5e-3 * size, msg=key)


def test_pictures_are_normalised_inside() -> None:
    class Given(nn.Module):
        num_features = 3

        def forward_features(self, x: torch.Tensor) -> torch.Tensor:
            return x

    stack = TimmStack(Given(), side=1)
    encoder = ImageEncoder(stack, trunk_blocks=1, mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 2.0))
    encoder.model.register_parameter("unused", nn.Parameter(torch.zeros(1)))
    tokens = encoder(ImageContent(torch.tensor([255, 0, 51], dtype=torch.uint8).view(1, 3, 1, 1)))
    torch.testing.assert_close(tokens.states, torch.tensor([[1.0, -1.0, (0.2 - 1.0) / 2.0]]))


def test_a_filled_batch_gives_what_the_batch_gives_in_value_and_gradient() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.SiLU(), nn.Flatten()).eval()
    pictures = torch.randn(5, 3, 8, 8)
    found = []
    for size in (5, 8):
        given = pictures.clone().requires_grad_()
        output = run_filled(given, network, size=size)
        network.zero_grad()
        output.square().sum().backward()
        found.append([output, given.grad, *(parameter.grad.clone() for parameter in network.parameters())])  # type: ignore[union-attr]
    for plain, filled in zip(*found, strict=True):
        torch.testing.assert_close(filled, plain)


def test_round_numbers_are_few_and_near() -> None:
    numbers = [round_number(count) for count in range(1, 4097)]
    assert all(count <= number <= count * 17 / 16 for count, number in enumerate(numbers, 1))
    assert numbers[:16] == list(range(1, 17))
    assert len(set(numbers[1024:2048])) == 16


@pytest.mark.parametrize("cut", [0, 1, 3])
def test_token_grid_averages_patches_and_keeps_the_class_token(cut: int) -> None:
    content = ImageContent(pictures(32))
    full = encode(vit(), 32, cut)(content).states.view(2, 17, 32)
    pooled = encode(vit(), 32, cut, grid=2)(content).states.view(2, 5, 32)
    patches = full[:, 1:].view(2, 4, 4, 32)
    torch.testing.assert_close(pooled[:, 0], full[:, 0])
    torch.testing.assert_close(pooled[:, 1], patches[:, :2, :2].mean((1, 2)))
    torch.testing.assert_close(pooled[:, 4], patches[:, 2:, 2:].mean((1, 2)))


def test_frozen_encoders_pool_before_the_cache_and_live_ones_after() -> None:
    content = ImageContent(pictures(32))
    assert encode(vit(), 32, 3, grid=2).trunk(content).lengths.tolist() == [5, 5]
    assert encode(vit(), 32, 2, grid=2).trunk(content).lengths.tolist() == [17, 17]
    assert encode(vit(), 32, 3, grid=9).trunk(content).lengths.tolist() == [17, 17]


def test_register_tokens_are_left_out_at_the_end_only() -> None:
    encoder = encode(vit(reg_tokens=2), 32, 1)
    content = ImageContent(pictures(32))
    assert encoder.trunk(content).lengths.tolist() == [19, 19]
    assert encoder(content).lengths.tolist() == [17, 17]
    features = vit(reg_tokens=2).eval().forward_features((content.pixels / 255 - 0.5) / 0.5)
    kept = features[:, [0, *range(3, 19)]].flatten(0, 1)
    torch.testing.assert_close(encoder(content).states, kept, rtol=1e-5, atol=1e-5)


def test_weights_that_features_do_not_depend_on_are_not_trained() -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=7, **VIT_SHAPE)
    encoder = encode(model, 32, 0)
    idle = {key for key, p in encoder.model.named_parameters() if not p.requires_grad}
    assert idle == {"head.weight", "head.bias"}


def test_unknown_structure_runs_frozen_or_full_but_not_cut() -> None:
    layers = TimmStack(make("swin")[0], side=64).layers
    assert choose_trunk_blocks("frozen", blocks=0, layers=layers) == 1
    with pytest.raises(ConfigError, match="frozen or full"):
        choose_trunk_blocks("top", blocks=1, layers=layers)


def test_a_model_whose_parts_do_not_make_the_whole_is_refused_when_cut() -> None:
    model = vit()
    features = model.forward_features
    model.forward_features = lambda x: 2 * features(x)
    encode(model, 32, 3)
    with pytest.raises(ConfigError, match="cut between blocks"):
        encode(model, 32, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models") / "tiny-vit"
    settings = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    model = vit()
    model.pretrained_cfg = {**model.pretrained_cfg, **settings, "input_size": (3, 32, 32)}
    save_for_hf(model, place, model_args=VIT_SHAPE, safe_serialization=True)
    return place


def test_a_saved_folder_comes_back(folder: Path) -> None:
    loaded = load_timm_model(str(folder))
    assert loaded.mean == (0.1, 0.2, 0.3)
    assert loaded.std == (0.4, 0.5, 0.6)
    pixels = torch.rand(1, 3, 32, 32)
    assert torch.equal(loaded.model.eval().forward_features(pixels), vit().eval().forward_features(pixels))


def test_position_embeddings_follow_the_side(folder: Path) -> None:
    loaded = load_timm_model(str(folder), side=48)
    assert loaded.side == 48
    encoder = encode(loaded.model, 48, 3)
    assert encoder(ImageContent(pictures(48))).lengths.tolist() == [37, 37]


def test_weights_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(3)
    donor = timm.create_model("resnet10t", num_classes=1000)
    save_file(lively(donor).state_dict(), tmp_path / "weights.safetensors")
    loaded = load_timm_model("resnet10t", weights=str(tmp_path / "weights.safetensors"))
    assert torch.equal(loaded.model.conv1[0].weight, donor.conv1[0].weight)


def test_random_weights_depend_on_their_seed_and_leave_the_global_state() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (load_timm_model("resnet10t", random_weights=True, seed=s).model for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.conv1[0].weight, same.conv1[0].weight)
    assert not torch.equal(one.conv1[0].weight, other.conv1[0].weight)


def test_unknown_name_lists_near_ones() -> None:
    with pytest.raises(ConfigError, match="did you mean 'resnet18'"):
        load_timm_model("resnet18x")


def test_folder_without_safetensors(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    torch.save(vit().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="safetensors"):
        load_timm_model(str(tmp_path))


def test_weights_that_cannot_be_fetched_are_a_config_error() -> None:
    with pytest.raises(ConfigError, match="safetensors weights"):
        load_timm_model("hf-hub:no-such-team/no-such-model")
