"""A training step over more distinct candidates than memory could keep the activations of."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from benchmarks.measure import Row, extra_memory
from benchmarks.processes import afresh
from mmrec.batch import ItemBatch, Parts
from mmrec.contents import TextContent
from mmrec.encoders.text import TextEncoder
from mmrec.encoders.transformers_text import TransformersStack
from mmrec.model.fusion import BottleneckFusion
from mmrec.model.item_encoder import ItemEncoder
from mmrec.objectives.logsumexp import weighted_logsumexp

SHAPES = {"small": (1_024, 256, 64), "cpu": (65_536, 8_192, 512), "gpu": (65_536, 8_192, 2_048)}
"""Candidates, candidates of the step that keeps everything, and items whose activations are kept at once."""
EQUAL = 512
"""Candidates on which the gradients of both ways are compared, in float64."""
DIM, WORDS, LONGEST = 64, 5_000, 24


def captions(number: int, device: str) -> ItemBatch:
    """Make distinct items with a caption of 4 to 24 tokens each."""
    generator = torch.Generator().manual_seed(number)
    lengths = torch.randint(4, LONGEST + 1, (number,), generator=generator)
    tokens = torch.randint(1, WORDS, (int(lengths.sum()),), generator=generator)
    rows = torch.arange(number)
    part = Parts(content=TextContent(tokens, lengths), item_index=rows, content_index=rows)
    return ItemBatch(item_rows=rows, parts={"text": part}).to(torch.device(device))


def item_encoder(device: str) -> ItemEncoder:
    """Make a live BERT with fusion; without dropout, so that both ways have one answer."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=2 * DIM,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=8 * DIM,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    text = TextEncoder(TransformersStack(BertModel(config, add_pooling_layer=False)), trunk_blocks=0)
    encoder = ItemEncoder(encoders={"text": text}, fusion=BottleneckFusion(dim=DIM, num_modalities=1), dim=DIM)
    return encoder.to(device).train()


def step(encoder: ItemEncoder, items: ItemBatch, *, at_once: int) -> dict[str, Tensor]:
    """Run an in-batch softmax forward and backward, every item a candidate and one in sixteen a target."""
    encoder.items_at_once = at_once
    encoder.zero_grad(set_to_none=True)
    vectors = torch.nn.functional.normalize(encoder(items), dim=1)
    asked = vectors[::16]
    scores = weighted_logsumexp(20 * asked, vectors.roll(1, 0), chunk=8192)
    torch.autograd.backward(scores.mean())
    return {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}


def extra_mb(candidates: str, at_once: str, device: str) -> float:
    """Return the megabytes that a first step over so many candidates takes beside weights and gradients."""
    encoder = item_encoder(device)
    items = captions(int(candidates), device)
    step(encoder, captions(64, device), at_once=0)  # buffers of the gradients, pools of the libraries
    with extra_memory(device) as found:
        step(encoder, items, at_once=int(at_once))
    return found["mb"]


def memory(*, size: str, device: str, rounds: int) -> Iterator[Row]:
    """Equal gradients, and the peak of many candidates in slices against fewer kept whole.  One round is enough."""
    del rounds
    many, fewer, at_once = SHAPES[size]
    sliced, whole = (
        afresh(extra_mb, str(candidates), str(kept), device=device)
        for candidates, kept in ((many, at_once), (fewer, 0))
    )
    yield Row(
        "memory",
        f"{many:,} candidates, {at_once} kept at once, over {fewer:,} all kept: extra peak of a step",
        (sliced / max(whole, 1e-9),),
        bound="at most",
        target=None if size == "small" else 1.0,
        details={f"{many:,} in slices MB": sliced, f"{fewer:,} kept MB": whole},
    )
    exact = item_encoder(device).double()
    few = captions(EQUAL, device)
    expected = step(exact, few, at_once=0)
    found = step(exact, few, at_once=EQUAL // 10)
    errors = [
        float((found[name] - grad).abs().max() / grad.abs().max().clamp(min=1e-12)) for name, grad in expected.items()
    ]
    yield Row(
        "memory",
        f"gradients in slices against one pass, {EQUAL} candidates, largest relative error",
        (max(errors),),
        bound="at most",
        target=1e-5,
        unit="",
    )
