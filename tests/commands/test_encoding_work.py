"""What a training says about its encoding: items named and distinct, padding, and what a cache spared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from mmrec.batch import HistoryBatch, ItemBatch, Parts
from mmrec.build import BuiltEncoder
from mmrec.commands.encoding_work import WorkLog
from mmrec.commands.train import train_run
from mmrec.config import Config, validate
from mmrec.contents import TextContent
from mmrec.encoders.text import TextEncoder
from mmrec.encoders.transformers_text import TransformersStack
from mmrec.run_folder import RunFolder
from mmrec.training.contract import WorkCounter
from tests.encoders.tiny_models import bert
from tests.tiny_run import TinyEncoders, TinyFeed, tiny_config
from tests.training.tiny import ITEMS, TIME, USERS, make_batch


@pytest.fixture
def encoder() -> TextEncoder:
    return TextEncoder(TransformersStack(bert()), trunk_blocks=2)


@pytest.fixture
def log(encoder: TextEncoder) -> WorkLog:
    return WorkLog({"text": BuiltEncoder(encoder), "item_id": BuiltEncoder(nn.Identity())})


def batch(num_targets: int) -> HistoryBatch:
    """Twelve items whose four captions are named by three of them."""
    made = make_batch(seed=0, num_targets=num_targets)
    content = TextContent(torch.arange(5, 9), torch.ones(4, dtype=torch.long))
    text = Parts(content, item_index=torch.tensor([0, 0, 5, 7]), content_index=torch.arange(4))
    items = ItemBatch(made.items.item_rows, {"text": text})
    return HistoryBatch(items, made.users, made.targets, made.negatives, made.user_rows)


class TestWorkLog:
    def test_items_are_those_of_the_last_batch(self, log: WorkLog) -> None:
        assert isinstance(log, WorkCounter)
        assert log.read() == {}
        for num_targets in (5, 3):
            log.count(batch(num_targets))
        named = USERS * TIME + 3 + len(batch(3).negatives)
        expected = {"items_named": named, "items_distinct": ITEMS, "text_parts": 4, "text_contents": 4}
        assert log.read() == expected

    def test_work_is_that_since_it_was_last_read(self, encoder: TextEncoder, log: WorkLog) -> None:
        encoder.work.add(encoded=1, cache_hits=3, real_tokens=6, padded_tokens=8)
        assert log.read() == {
            "text_padding_share": 1 - 6 / 8,
            "text_cache_hits": 3,
            "text_cache_hit_share": 3 / 4,
        }
        assert log.read() == {}
        encoder.work.add(real_tokens=5, padded_tokens=5)
        assert log.read() == {"text_padding_share": 0.0}

    def test_what_filled_the_cache_before_is_in_the_summary_only(self, encoder: TextEncoder) -> None:
        encoder.work.add(encoded=1, real_tokens=3, padded_tokens=4)
        log = WorkLog({"text": BuiltEncoder(encoder)})
        assert log.read() == {}
        encoder.work.add(cache_hits=1999)
        assert log.summary()["text contents"] == "2,000, 25.0% padding, 1,999 cache hits (100.0%)"

    def test_summary(self, encoder: TextEncoder, log: WorkLog) -> None:
        assert log.summary() == {"items named / distinct": "0 / 0 (0.0)"}
        named = sum(USERS * TIME + count + len(batch(count).negatives) for count in (5, 3))
        for num_targets in (5, 3):
            log.count(batch(num_targets))
        encoder.work.add(cache_hits=3)
        assert log.summary() == {
            "items named / distinct": f"{named} / {2 * ITEMS} ({named / (2 * ITEMS):.1f})",
            "text contents": "3, 3 cache hits (100.0%)",
        }


class TestTraining:
    """The text encoder is live above a cached trunk, or all of it, or runs its trunk itself; pictures are frozen."""

    def run(self, config: Config, feed: TinyFeed, out: Path) -> tuple[dict[str, object], list[dict[str, float]]]:
        summary = train_run(config, feed=feed.prepared, out=out, device="cpu")
        lines = [json.loads(line) for line in RunFolder(out).metrics.read_text().splitlines()]
        return summary, [line for line in lines if "work/items_named" in line]

    def config(self, encoders: TinyEncoders, tuning: dict[str, object], **train: object) -> Config:
        # Twenty users in batches of two are ten steps an epoch, and every tenth is logged.
        values = tiny_config(encoders, train={"epochs": 2, "batch_users": 2, **train}).model_dump(mode="json")
        values["encoders"]["text"]["tuning"] = tuning
        return validate(values, where="test")

    def test_cached_trunk(self, tiny_encoders: TinyEncoders, tiny_feed: TinyFeed, tmp_path: Path) -> None:
        config = self.config(tiny_encoders, {"mode": "top", "blocks": 1})
        summary, records = self.run(config, tiny_feed, tmp_path / "run")
        assert [record["step"] for record in records] == [10, 20]
        for record in records:
            assert record["work/items_named"] >= record["work/items_distinct"] > 0
            assert 0 <= record["work/text_padding_share"] < 0.5
            assert "work/image_padding_share" not in record, "a cached picture encoder runs nothing"
            for name in ("text", "image"):
                assert record[f"work/{name}_cache_hits"] >= record[f"work/{name}_contents"]
                assert record[f"work/{name}_cache_hit_share"] == 1.0
        named, distinct = str(summary["items named / distinct"]).split(" (")[0].split(" / ")
        assert int(named.replace(",", "")) > int(distinct.replace(",", "")) > 0
        assert "% padding, " in str(summary["text contents"])
        assert "cache hits (" in str(summary["image contents"])
        assert "item_id contents" not in summary

    @pytest.mark.parametrize(
        ("tuning", "cached"), [({"mode": "full"}, True), ({"mode": "top", "blocks": 1}, False), ({}, False)]
    )
    def test_live_text(
        self, tiny_encoders: TinyEncoders, tiny_feed: TinyFeed, tmp_path: Path, tuning: dict[str, object], cached: bool
    ) -> None:
        config = self.config(tiny_encoders, tuning, trunk_cache=cached)
        summary, records = self.run(config, tiny_feed, tmp_path / "run")
        for record in records:
            assert 0 <= record["work/text_padding_share"] < 0.5
            assert (record["work/text_cache_hits"], record["work/text_cache_hit_share"]) == (0, 0)
        assert str(summary["text contents"]).endswith("% padding, 0 cache hits (0.0%)")

    def test_a_second_run_encodes_nothing(
        self, tiny_encoders: TinyEncoders, tiny_feed: TinyFeed, tmp_path: Path
    ) -> None:
        config = self.config(tiny_encoders, {})
        self.run(config, tiny_feed, tmp_path / "first")
        summary, records = self.run(config, tiny_feed, tmp_path / "second")
        assert all("work/text_padding_share" not in record for record in records)
        assert "padding" not in str(summary["text contents"])
        assert str(summary["text contents"]).endswith("cache hits (100.0%)")
