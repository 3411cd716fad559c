"""A training step never makes the host wait for a device, and comes to what it comes to on a CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmrec.batch import HistoryBatch, ItemBatch, Parts, Targets, UserBatch
from mmrec.contents import IdContent, ImageContent, StoredContent, TextContent
from mmrec.encoders.image import ImageEncoder
from mmrec.encoders.item_id import ItemIdEncoder
from mmrec.encoders.text import TextEncoder
from mmrec.encoders.timm_image import TimmStack
from mmrec.encoders.transformers_text import TransformersStack
from mmrec.host import on_device
from mmrec.model.fusion import BottleneckFusion
from mmrec.model.item_encoder import ItemEncoder
from mmrec.model.recommender import RecommenderModel
from mmrec.model.scorer import Scorer
from mmrec.model.transformer import TransformerUserEncoder
from mmrec.training.loss import LossKind, TrainingLoss
from tests.encoders.tiny_models import MEAN, STD, bert, vit
from tests.pretend_device import DEVICE, PretendDevice, back, send

ITEMS, USERS, TIME, DIM, CATALOGUE = 9, 4, 5, 8, 14


def model(*, live: int) -> RecommenderModel:
    """Draws nothing on the device: which modalities are hidden is drawn on the host."""
    torch.manual_seed(0)
    text = TextEncoder(TransformersStack(bert(dropout=0.0)), trunk_blocks=3 - live)
    image = ImageEncoder(TimmStack(vit(), side=32), trunk_blocks=3 - live, mean=MEAN, std=STD)
    return RecommenderModel(
        item_encoder=ItemEncoder(
            encoders={"text": text, "image": image, "item_id": ItemIdEncoder(CATALOGUE, DIM)},
            fusion=BottleneckFusion(dim=DIM, num_modalities=2, num_heads=2),
            dim=DIM,
            modality_dropout=0.5,
            id_dropout=0.4,
        ),
        user_encoder=TransformerUserEncoder(dim=DIM, num_heads=2, max_length=TIME),
        scorer=Scorer(dim=DIM),
        contrastive_items=4,
    ).train()


def batch() -> HistoryBatch:
    """Captions that two items share, items that lack something, histories of several lengths."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([3, 7, 2, 7, 12, 1])
    captions = TextContent(torch.randint(5, 20, (int(lengths.sum()),), generator=generator), lengths)
    pictures = ImageContent(torch.randint(0, 256, (5, 3, 32, 32), generator=generator, dtype=torch.uint8))
    rows = torch.arange(6)
    known = IdContent(rows, rows.float() + 1, torch.zeros(6))
    parts = {
        "text": Parts(captions, torch.tensor([0, 1, 2, 3, 4, 5, 7]), torch.tensor([0, 1, 1, 2, 3, 4, 5])),
        "image": Parts(pictures, torch.tensor([0, 1, 3, 4, 4, 5, 6]), torch.tensor([0, 1, 2, 3, 4, 0, 1])),
        "item_id": Parts(known, rows, rows),
    }
    events = torch.tensor([5, 2, 4, 1])
    valid = torch.arange(TIME) < events.unsqueeze(1)
    positions = torch.randint(0, ITEMS, (USERS, TIME), generator=generator).where(valid, 0)
    user_index, slots = valid.nonzero(as_tuple=True)
    count = len(slots)
    return HistoryBatch(
        items=ItemBatch(torch.arange(ITEMS), parts),
        users=UserBatch(positions, valid, torch.arange(TIME).expand(USERS, -1).where(valid, 0)),
        targets=Targets(
            user_index=user_index,
            time_index=slots - 1,
            item_positions=positions[user_index, slots],
            action=torch.zeros(count, dtype=torch.long),
            value=torch.ones(count),
            weight=torch.ones(count),
            impression=torch.full((count,), -1),
            together=torch.zeros(count, dtype=torch.bool),
        ),
        negatives=torch.tensor([7, 8]),
        user_rows=torch.arange(USERS),
    )


def loss(kind: LossKind) -> TrainingLoss:
    return TrainingLoss(
        kind=kind,
        mask_history=True,
        contrastive_weight=0.1,
        num_users=20,
        users_with_item=torch.arange(CATALOGUE) % 4,
        chunk=4,
    )


def gradients(module: RecommenderModel) -> dict[str, Tensor]:
    return {name: back(value.grad) for name, value in module.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("kind", ["full_softmax", "in_batch_softmax"])
@pytest.mark.parametrize("live", [3, 1, 0])
def test_a_step_waits_for_nothing_and_comes_to_the_same(kind: LossKind, live: int) -> None:
    bank = torch.randn(CATALOGUE, DIM + 1, generator=torch.Generator().manual_seed(2))
    here, there = model(live=live), send(model(live=live))
    torch.manual_seed(3)
    expected = loss(kind)(here(batch()), batch(), bank).total
    torch.autograd.backward(expected)
    moved = loss(kind)
    with PretendDevice() as before:
        sent, there_bank, moved = batch().to(DEVICE, non_blocking=True), bank.to(DEVICE), moved.to(DEVICE)
        moved._log_inclusion(batch_users=USERS, negatives=2)
    assert before.operations
    torch.manual_seed(3)
    with PretendDevice() as device:
        found = moved(there(sent), sent, there_bank).total
        torch.autograd.backward(found)
    assert not device.waits
    torch.testing.assert_close(back(found.detach()), expected.detach())
    wanted = gradients(here)
    got = gradients(there)
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_contents_that_lie_on_the_device_are_read_without_waiting() -> None:
    lengths = torch.tensor([3, 1, 2])
    rows = torch.tensor([2, 0])
    with PretendDevice() as device:
        store = TextContent(torch.arange(6), lengths).to(DEVICE, non_blocking=True)
        found = StoredContent(store, rows).to(DEVICE).read()
    assert isinstance(found, TextContent)
    assert back(found.token_ids).tolist() == [4, 5, 0, 1, 2]  # type: ignore[union-attr]
    assert found.lengths.tolist() == [2, 3]
    assert not device.waits


def test_tensors_that_are_sent_together_stay_what_they_are() -> None:
    tensors = (
        torch.arange(5),
        torch.tensor([True, False, True]),
        torch.zeros(0, 2),
        torch.tensor([[1.5], [2.5]]).half(),
    )
    with PretendDevice() as device:
        sent = on_device(DEVICE, *tensors)
    assert device.operations["_to_copy"] == 1
    for tensor, arrived in zip(tensors, sent, strict=True):
        assert arrived.device == DEVICE
        assert torch.equal(back(arrived), tensor)  # type: ignore[arg-type]
    assert on_device(torch.device("cpu"), *tensors) == tensors
