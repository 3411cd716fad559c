"""Real encoders, made on the spot and small enough to run in milliseconds."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path

import open_clip
import timm
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import AutoModel, BertConfig, PreTrainedTokenizerFast

WORDS = [
    "red",
    "blue",
    "green",
    "wool",
    "silk",
    "scarf",
    "jumper",
    "dress",
    "with",
    "a",
    "the",
    "and",
    "striped",
    "soft",
    "small",
    "large",
    "##s",
    "##ed",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = [*SPECIAL, *WORDS]
TEXT_SHAPE = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
VIT_SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
CLIP_SHAPE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2},
}
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def wordpiece() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer like BERT's over a few words."""
    ids = {word: number for number, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **names)


def lively(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """Give every weight, biases and norms too, a value that shows in the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def bert(*, dropout: float = 0.1) -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(**TEXT_SHAPE, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    return lively(AutoModel.from_config(config))


def bert_folder(folder: Path) -> Path:
    """A BERT and its tokenizer as transformers saves them."""
    bert().save_pretrained(folder)
    wordpiece().save_pretrained(folder)
    return folder


def vit(**changes: object) -> nn.Module:
    torch.manual_seed(0)
    return lively(timm.create_model("vit_tiny_patch16_224", num_classes=0, **(VIT_SHAPE | changes)))


@cache
def _efficientnet() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("tf_efficientnet_lite0", num_classes=0)


def efficientnet() -> nn.Module:
    return copy.deepcopy(_efficientnet())


def open_clip_folder(folder: Path, *, weights: bool = True, **changes: object) -> Path:
    """An open_clip pair as the hub keeps them: a config and safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = CLIP_SHAPE | changes
    settings = {"model_cfg": shape, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    if weights:
        torch.manual_seed(0)
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder
