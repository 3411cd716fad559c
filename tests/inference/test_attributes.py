"""Attributes from the feed to the score: learnt where only they explain, known of cold items and of new posts."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mmrec import Post
from mmrec.commands.evaluate import evaluate_run
from mmrec.commands.score import score_file
from mmrec.commands.train import train_run
from mmrec.config import validate
from mmrec.config_file import load_config
from mmrec.errors import ConfigError
from mmrec.inference.embedding_table import item_keys
from mmrec.inference.recommender import Recommender
from mmrec.run_folder import RunFolder
from mmrec.storage import read_json
from tests.attribute_run import BRANDS, CAPTION, COLD, AttributeFeed, attribute_config
from tests.tiny_run import TinyEncoders, write_lines


@pytest.fixture(scope="module")
def recommender(attribute_run: Path) -> Recommender:
    return Recommender.load(attribute_run, device="cpu")


def history(feed: AttributeFeed, brand: str) -> list[str]:
    return [item_id for item_id, own in feed.brand.items() if own == brand and item_id not in COLD.values()][:4]


class TestLearnt:
    def test_only_attributes_explain_the_clicks(self, attribute_run: Path, tmp_path: Path) -> None:
        """Ten items of a brand, five of them chosen before: whoever knows the brand finds the target among few."""
        run = shutil.copytree(attribute_run, tmp_path / "run")
        report = evaluate_run(run, part="test", device="cpu").report
        knocked = {entry.name: entry for entry in report.knockouts}
        assert list(knocked) == ["drop_caption", "drop_attributes"]
        model = next(row for row in report.headline.rows if row.scorer == "model")
        assert model.metrics["hr@10"].mean > 0.9
        assert knocked["drop_attributes"].losses["hr@10"].low > 0.3
        assert knocked["drop_caption"].losses["hr@10"].high < 0.1
        assert not any("attributes" in row.scorer for row in report.headline.rows), "no features before training"

    @pytest.mark.parametrize("brand", BRANDS)
    def test_a_cold_item_of_the_right_brand_is_first(
        self, recommender: Recommender, attribute_feed: AttributeFeed, brand: str
    ) -> None:
        found = recommender.score(history=history(attribute_feed, brand), candidates=list(COLD.values()))
        assert found.set_index("rank").loc[1, "candidate"] == COLD[brand]
        assert set(found["present"]) == {"text+attributes"}

    def test_a_new_post_of_the_right_brand_is_first(
        self, recommender: Recommender, attribute_feed: AttributeFeed
    ) -> None:
        posts = [Post(caption=CAPTION, attributes={"brand": brand}, name=brand) for brand in BRANDS]
        found = recommender.score(history=history(attribute_feed, "fir"), candidates=posts)
        assert found.set_index("rank").loc[1, "candidate"] == "fir"


class TestNewPosts:
    def test_equal_the_item_with_the_same_content(
        self, recommender: Recommender, attribute_feed: AttributeFeed
    ) -> None:
        ids = ["i05", COLD["elm"]]
        table = recommender.assembly.catalogue.attributes.set_index("item_id").loc[ids]
        posts = [Post(caption=CAPTION, attributes=row) for row in table[["brand", "price", "size"]].to_dict("records")]
        np.testing.assert_allclose(recommender.embed(posts), recommender.embed(ids), atol=1e-5, rtol=0)

    def test_every_way_of_writing_a_value(self, recommender: Recommender) -> None:
        ways = [
            {"brand": "oak|elm", "price": 12},
            {"brand": ["elm", " oak"], "price": "12.0"},
            {"price": np.float32(12), "brand": '["oak", "elm"]', "size": None},
        ]
        vectors = recommender.embed([Post(caption=CAPTION, attributes=way) for way in ways])
        np.testing.assert_allclose(vectors, vectors[[0, 0, 0]], atol=1e-6)

    def test_what_is_unknown_or_missing(self, recommender: Recommender) -> None:
        def vector(**attributes: object) -> np.ndarray:
            return recommender.embed([Post(caption=CAPTION, attributes=attributes)])[0]

        assert np.array_equal(vector(brand="unheard of"), vector(brand="never seen"))
        assert not np.allclose(vector(brand="unheard of"), vector())
        assert not np.allclose(vector(brand="oak"), vector())
        np.testing.assert_allclose(vector(size="40"), vector(), atol=1e-6, err_msg="the model does not read it")

    def test_attributes_alone_are_a_post(self, recommender: Recommender) -> None:
        found = recommender.score(
            history=["i01"],
            candidates=[
                Post(attributes={"brand": "oak"}),
                Post(attributes={"size": "38"}),
                Post(attributes={"bran": "oak"}),
                Post(caption=CAPTION, attributes={"price": "cheap"}),
            ],
        )
        assert found["present"].tolist() == ["attributes", "", "", ""]
        unread, misspelt, no_number = found["error_message"][1:]
        assert "a post with text or attributes" in unread
        assert "did you mean 'brand'" in misspelt
        assert "a number, got 'cheap'" in no_number

    def test_in_tables_of_requests(self, attribute_run: Path, tmp_path: Path) -> None:
        candidates = [
            {"caption": CAPTION, "attributes": {"brand": brand, "price": 3}, "item_id": brand} for brand in BRANDS
        ]
        rows = [{"request_id": "r", "history": ["i02", "i06"], **candidate} for candidate in candidates]
        write_lines(tmp_path / "rows.jsonl", rows)
        write_lines(
            tmp_path / "lists.jsonl", [{"request_id": "r", "history": ["i02", "i06"], "candidates": candidates}]
        )
        text = pd.DataFrame(rows)
        text["history"], text["attributes"] = "i02|i06", [json.dumps(row["attributes"]) for row in rows]
        text.to_csv(tmp_path / "rows.csv", index=False)
        found = []
        for name in ("rows.jsonl", "lists.jsonl", "rows.csv"):
            score_file(attribute_run, requests=tmp_path / name, out=tmp_path / "out.parquet", device="cpu")
            found.append(pd.read_parquet(tmp_path / "out.parquet"))
        assert found[0].set_index("rank").loc[1, "candidate"] == "fir"
        for other in found[1:]:
            pd.testing.assert_frame_equal(other, found[0])
        write_lines(tmp_path / "bad.jsonl", [{"history": ["i02"], "caption": CAPTION, "attributes": [1]}])
        score_file(attribute_run, requests=tmp_path / "bad.jsonl", out=tmp_path / "out.parquet", device="cpu")
        assert "as a JSON object, got list" in pd.read_parquet(tmp_path / "out.parquet")["error_message"][0]


class TestKeptWithTheRun:
    def test_vocabulary_of_training_items_alone(self, attribute_run: Path) -> None:
        vocabulary = read_json(RunFolder(attribute_run).preprocessing / "attributes" / "vocabulary.json")
        assert list(vocabulary) == ["brand", "price"]
        assert vocabulary["brand"] == {"values": sorted(BRANDS)}, "nobody chose what is unheard of"

    def test_another_feed_is_read_with_the_vocabulary_of_the_run(
        self, attribute_run: Path, attribute_feed: AttributeFeed, tmp_path: Path
    ) -> None:
        """In a grown feed a brand is new and a price is changed: only these items are encoded again."""
        run, grown = tmp_path / "run", tmp_path / "grown"
        shutil.copytree(attribute_run, run), shutil.copytree(attribute_feed.folder, grown)
        items = pd.read_parquet(grown / "items.parquet")
        items.loc[3, "brand"], items.loc[7, "size"] = "aaa", "40"
        items.to_parquet(grown / "items.parquet")
        (grown / "manifest.json").write_text(
            json.dumps(read_json(grown / "manifest.json") | {"feed_hash": "0" * 32}), encoding="utf-8"
        )
        before, after = Recommender.load(run, device="cpu"), Recommender.load(run, feed=grown, device="cpu")
        assert before.model_hash == after.model_hash
        old, new = item_keys(before.assembly), item_keys(after.assembly)
        assert [row for row, (one, other) in enumerate(zip(old, new, strict=True)) if one != other] == [3]
        first, second = before.item_embeddings(), after.item_embeddings()
        assert after.items_encoded == 1
        assert np.flatnonzero((first != second).any(axis=1)).tolist() == [3]

    def test_the_vocabulary_counts_in_the_model_hash(self, attribute_run: Path, tmp_path: Path) -> None:
        run = shutil.copytree(attribute_run, tmp_path / "run")
        path = RunFolder(run).preprocessing / "attributes" / "vocabulary.json"
        vocabulary = read_json(path)
        vocabulary["brand"] = {"values": ["elm", "oak", "fir", "ash"]}
        path.write_text(json.dumps(vocabulary), encoding="utf-8")
        hashes = {Recommender.load(folder, device="cpu").model_hash for folder in (run, attribute_run)}
        assert len(hashes) == 2

    def test_a_model_without_attributes_has_the_keys_it_had(
        self, recommender: Recommender, attribute_feed: AttributeFeed
    ) -> None:
        assembly = recommender.assembly
        without = replace(assembly, encoders={"text": assembly.encoders["text"]})
        assert len(set(item_keys(assembly))) == len(set(item_keys(without))) == len(attribute_feed.brand)
        assert not set(item_keys(assembly)) & set(item_keys(without))


class TestTraining:
    def test_unknown_column(self, tiny_encoders: TinyEncoders, attribute_feed: AttributeFeed, tmp_path: Path) -> None:
        config = attribute_config(tiny_encoders, columns=("bran",))
        with pytest.raises(ConfigError, match=r"got 'bran'.*encoders.attributes.columns.*did you mean 'brand'"):
            train_run(config, feed=attribute_feed.folder, out=tmp_path / "run", device="cpu")
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"columns": []}, "at least 1"),
            ({"columns": ["a", "a"]}, "must differ"),
            ({"columns": ["a"], "numbers": ["b"]}, "numbers must be among columns"),
            ({"columns": ["a"], "bucket": 3}, "did you mean 'buckets'"),
        ],
    )
    def test_settings_that_make_no_sense(self, settings: dict[str, object], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            validate({"encoders": {"attributes": {"kind": "attributes"} | settings}}, where="test")

    def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(
        self, tiny_encoders: TinyEncoders, attribute_feed: AttributeFeed, tmp_path: Path
    ) -> None:
        config = attribute_config(tiny_encoders)
        settings = config.model_copy(update={"train": config.train.model_copy(update={"epochs": 2})})

        def stop(epoch: object, metrics: object) -> bool:
            return True

        for name, hook in (("whole", None), ("halves", stop)):
            train_run(settings, feed=attribute_feed.folder, out=tmp_path / name, device="cpu", on_validation=hook)
        train_run(settings, feed=attribute_feed.folder, out=tmp_path / "halves", device="cpu", resume=True)
        tables = [Recommender.load(tmp_path / name, device="cpu").item_embeddings() for name in ("whole", "halves")]
        np.testing.assert_array_equal(*tables)

    def test_modality_dropout_hides_attributes_too(self, recommender: Recommender) -> None:
        """All items lose one of their two modalities: vectors are those of captions, or of attributes, alone."""
        assembly = recommender.assembly
        encoder, rows = assembly.model.item_encoder, assembly.all_rows
        batch, parts = assembly.reader.read(rows), assembly.reader.modalities
        share, features = encoder.modality_dropout, encoder.assembler.dropout  # type: ignore[union-attr]
        encoder.modality_dropout = 0.999
        try:
            torch.manual_seed(0)
            visible = encoder.train()._visible_parts(batch)
        finally:
            encoder.modality_dropout = share
            encoder.eval()
        assert features == assembly.config.model.fusion.feature_dropout
        counts = {name: len(part.item_index) for name, part in visible.items()}
        assert set(counts) == set(parts) == {"text", "attributes"}
        assert sum(counts.values()) == len(rows)
        assert min(counts.values()) > 5


def test_a_config_read_back_is_the_same(attribute_run: Path, tiny_encoders: TinyEncoders) -> None:
    assert load_config(RunFolder(attribute_run).config) == attribute_config(tiny_encoders)
