"""open_clip pairs: both halves compute what the library computes, cut anywhere."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch

from mmrec.contents import ImageContent, TextContent
from mmrec.encoders.clip import (
    OpenClipPair,
    load_open_clip,
    open_clip_image_stack,
    open_clip_text_stack,
)
from mmrec.encoders.image import ImageEncoder
from mmrec.encoders.text import TextEncoder
from mmrec.errors import ConfigError
from mmrec.preprocessing.text import TextPreprocessor
from tests.encoders.tiny_models import CLIP_SHAPE, MEAN, STD, open_clip_folder

CAPTIONS = ["a red scarf", "striped wool jumper, soft", "x"]
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}
TIMM = {"image_size": 64, "timm_model_name": "resnet10t", "timm_pool": "avg", "timm_proj": "linear"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return open_clip_folder(tmp_path_factory.mktemp("models") / "pair")


def captions(pair: OpenClipPair) -> TextContent:
    preprocessor = TextPreprocessor.from_open_clip(
        pair.source, context_length=pair.context_length, reads_padding=pair.reads_padding
    )
    ids = preprocessor.encode(CAPTIONS).token_ids
    return TextContent(torch.from_numpy(ids.values), torch.from_numpy(ids.lengths))


def text_encoder(pair: OpenClipPair, cut: int) -> TextEncoder:
    return TextEncoder(open_clip_text_stack(pair), trunk_blocks=cut)


def image_encoder(pair: OpenClipPair, cut: int) -> ImageEncoder:
    return ImageEncoder(open_clip_image_stack(pair), trunk_blocks=cut, mean=pair.mean, std=pair.std)


@pytest.mark.parametrize("custom_text", [False, True])
@pytest.mark.parametrize("cut", [0, 1, 2])
def test_last_token_projected_is_the_text_vector(tmp_path: Path, custom_text: bool, cut: int) -> None:
    place = open_clip_folder(tmp_path, custom_text=custom_text)
    pair = load_open_clip(str(place))
    expected = pair.model.eval().encode_text(open_clip.get_tokenizer(pair.source)(CAPTIONS))
    projection = getattr(pair.model, "text", pair.model).text_projection
    tokens = text_encoder(pair, cut).eval()(captions(pair))
    last = tokens.states[tokens.lengths.cumsum(0) - 1]
    torch.testing.assert_close(last @ projection, expected, rtol=1e-5, atol=1e-5)


def test_bidirectional_text_that_reads_its_padding_is_given_it(tmp_path: Path) -> None:
    text = CLIP_SHAPE["text_cfg"] | {"no_causal_mask": True, "pool_type": "last"}
    pair = load_open_clip(str(open_clip_folder(tmp_path, text_cfg=text, custom_text=True)))
    assert pair.reads_padding
    ids = open_clip.get_tokenizer(pair.source)(CAPTIONS)
    content = TextContent(ids.flatten(), torch.full((3,), 16))
    tokens = text_encoder(pair, 1).eval()(content)
    last = tokens.states.view(3, 16, -1)[:, -1]
    expected = pair.model.eval().encode_text(ids)
    torch.testing.assert_close(last @ pair.model.text.text_projection, expected, rtol=1e-5, atol=1e-5)


def test_bidirectional_text_never_sees_padding_of_a_bucket(tmp_path: Path) -> None:
    text = CLIP_SHAPE["text_cfg"] | {"no_causal_mask": True}
    pair = load_open_clip(str(open_clip_folder(tmp_path, text_cfg=text, custom_text=True)))
    encoder = text_encoder(pair, 1).eval()
    ids = torch.arange(5, 13)
    both = encoder(TextContent(ids, torch.tensor([5, 3]))).states
    alone = [encoder(TextContent(row, torch.tensor([len(row)]))).states for row in ids.split([5, 3])]
    torch.testing.assert_close(both, torch.cat(alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_class_token_projected_is_the_picture_vector(folder: Path, cut: int) -> None:
    pair = load_open_clip(str(folder))
    assert (pair.mean, pair.std, pair.side, pair.context_length) == (MEAN, STD, 32, 16)
    pixels = torch.randint(0, 256, (3, 3, 32, 32)).byte()
    normal = (pixels / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    expected = pair.model.eval().encode_image(normal)
    tokens = image_encoder(pair, cut).eval()(ImageContent(pixels))
    assert tokens.lengths.tolist() == [17, 17, 17]
    first = tokens.states.view(3, 17, 32)[:, 0]
    torch.testing.assert_close(first @ pair.model.visual.proj, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cut", [0, 2, 4])
def test_resnet_map_pooled_by_attention_is_the_picture_vector(tmp_path: Path, cut: int) -> None:
    pair = load_open_clip(str(open_clip_folder(tmp_path, vision_cfg=RESNET)))
    pixels = torch.randint(0, 256, (2, 3, 64, 64)).byte()
    normal = (pixels / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    expected = pair.model.eval().encode_image(normal)
    tokens = image_encoder(pair, cut).eval()(ImageContent(pixels))
    feature_map = tokens.states.view(2, 2, 2, 256).permute(0, 3, 1, 2)
    torch.testing.assert_close(pair.model.visual.attnpool(feature_map), expected, rtol=1e-4, atol=1e-5)


def test_image_half_of_timm(tmp_path: Path) -> None:
    pair = load_open_clip(str(open_clip_folder(tmp_path, vision_cfg=TIMM)))
    assert len(open_clip_image_stack(pair).layers.blocks) == 4
    tokens = image_encoder(pair, 2)(ImageContent(torch.zeros(2, 3, 64, 64).byte()))
    assert tokens.lengths.tolist() == [4, 4]


def test_random_weights_need_no_file_and_depend_on_their_seed(tmp_path: Path) -> None:
    place = str(open_clip_folder(tmp_path, weights=False))
    before = torch.random.get_rng_state()
    one, same, other = (load_open_clip(place, random_weights=True, seed=s).model for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.visual.conv1.weight, same.visual.conv1.weight)
    assert not torch.equal(one.visual.conv1.weight, other.visual.conv1.weight)
    with pytest.raises(ConfigError, match="no \\*.safetensors"):
        load_open_clip(place)


def test_registered_name_takes_a_safetensors_file(folder: Path, tmp_path: Path) -> None:
    import json

    (tmp_path / "tiny-pair.json").write_text(json.dumps(CLIP_SHAPE))
    open_clip.add_model_config(tmp_path)
    pair = load_open_clip("tiny-pair", pretrained=str(folder / "open_clip_model.safetensors"))
    assert torch.equal(pair.model.visual.conv1.weight, load_open_clip(str(folder)).model.visual.conv1.weight)
    with pytest.raises(ConfigError, match="pretrained tag"):
        load_open_clip("tiny-pair", pretrained="laion2b")


def test_unknown_name_lists_near_ones() -> None:
    with pytest.raises(ConfigError, match="ViT-B-32"):
        load_open_clip("ViT-B-23")
