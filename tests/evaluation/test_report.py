from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmrec.evaluation.evaluate import evaluate
from mmrec.evaluation.examples import ExampleItem, ExampleUser, example_users
from mmrec.evaluation.report import picture_url, render, write_report
from mmrec.evaluation.results import EvaluationReport
from mmrec.evaluation.significance import Bootstrap
from tests.evaluation.toys import Fixed, cases_of, catalogue_of, crossmodal_of, histories_of, split_of

EVIL = '<script>alert("x")</script> & "quoted" \'too\''
RED = np.full((4, 6, 3), (250, 10, 10), np.uint8)
CURVES = [
    {"step": 1, "epoch": 0, "loss": 2.5},
    {"step": 2, "epoch": 0, "loss": float("nan")},
    {"step": 3, "epoch": 1, "ndcg@10": 0.25, "hr@10": 0.5},
]
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects tags and attributes, and checks that what opens closes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"


@pytest.fixture(scope="module")
def found() -> tuple[EvaluationReport, list[ExampleUser]]:
    histories = histories_of([[0, 1, 2], [1, 2, 0, 0], [2, 3], [0, 1, 3]])
    cases = cases_of(histories, [1, 2, 1, 1], num_items=4)
    catalogue = catalogue_of([EVIL, None, "بلوزة حمراء", "plain"], [RED, None, RED, None])
    split = split_of(histories, cases)
    table = np.arange(16, dtype=np.float64).reshape(4, 4) % 5
    report = evaluate(
        {"model": Fixed(table), "<b>baseline</b>": Fixed(-table)},
        cases,
        catalogue,
        histories,
        split,
        knockouts={"drop_picture": lambda: Fixed(-table)},
        crossmodal=crossmodal_of(),
        bootstrap=Bootstrap(resamples=50),
    )
    return report, example_users(report.ranks[report.headline.name], cases, histories, catalogue)


def test_examples_show_what_happened(found: tuple[EvaluationReport, list[ExampleUser]]) -> None:
    report, examples = found
    assert sorted(user.user_id for user in examples) == ["u0", "u1", "u2", "u3"]
    user = next(user for user in examples if user.user_id == "u0")
    assert [item.item_id for item in user.history] == ["i0", "i1"]
    assert user.history[0].caption == EVIL
    assert user.history[0].picture is not None
    np.testing.assert_array_equal(user.history[0].picture, RED)
    scores = [item.score for item in user.recommended if item.score is not None]
    assert scores == sorted(scores, reverse=True)
    assert [item.item_id for item in user.recommended if item.hit] == ["i2"]
    assert [(item.item_id, item.hit) for item in user.chosen] == [("i2", True)]
    assert [item.item_id for item in user.recommended if item.repeat] == (
        [] if report.headline.filter_seen else ["i1", "i0"]
    )


def test_page_is_one_whole_file_that_loads_nothing(found: tuple[EvaluationReport, list[ExampleUser]]) -> None:
    text = render(found[0], found[1], CURVES, title=EVIL)
    page = Page(text)
    assert page.open == []
    assert not re.search(r"https?:|@import|url\((?!#)", text)
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object"}
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:image/jpeg;base64,")), value
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_captions_names_and_titles_are_escaped(found: tuple[EvaluationReport, list[ExampleUser]]) -> None:
    text = render(found[0], found[1], CURVES, title=EVIL)
    assert "<script" not in text
    assert "<b>baseline" not in text
    assert "&lt;script&gt;" in text
    assert "بلوزة حمراء" in text
    assert not any(name.startswith("on") for _, attributes in Page(text).tags for name in attributes)


def test_every_picture_has_a_text_and_every_plot_a_label(found: tuple[EvaluationReport, list[ExampleUser]]) -> None:
    page = Page(render(found[0], found[1], CURVES))
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert pictures
    assert all(attributes.get("alt") for attributes in pictures)
    figures = [attributes for tag, attributes in page.tags if tag == "figure"]
    assert len(figures) == 3
    assert all(attributes.get("role") == "img" and attributes.get("aria-label") for attributes in figures)


def test_page_holds_the_figures_and_follows_the_colour_scheme(
    found: tuple[EvaluationReport, list[ExampleUser]],
) -> None:
    text = render(found[0], found[1], CURVES)
    assert f"{found[0].headline.rows[0].metrics['ndcg@10'].mean:.4f}" in text
    assert "prefers-color-scheme: dark" in text
    assert "var(--accent)" in text
    assert not re.search(r"#00000[1-6]", text)


def test_page_shows_captions_against_pictures(found: tuple[EvaluationReport, list[ExampleUser]]) -> None:
    text = render(found[0], [], [])
    section = text[text.index("A caption finds its own picture") :].partition("</section>")[0]
    assert "12 posts are asked about" in section
    assert "Training saw none of them." in section
    assert "1,500 other posts" in section
    for direction in ("caption to picture", "picture to caption"):
        assert direction in section
    # Twelve candidates: rank 1 for the model; for the frozen features ten orthogonal ones tie and one is taken first.
    assert [section.count(f">{rank}</td>") for rank in (1, 12, 6)] == [2, 2, 2]
    assert section.count("+1.0000") == 6
    assert section.count("0.0833") == 2


def test_page_without_curves_examples_knockouts(found: tuple[EvaluationReport, list[ExampleUser]]) -> None:
    histories = histories_of([[0, 0]])
    cases = cases_of(histories, [1], num_items=1)
    report = evaluate({"model": Fixed([[1.0]])}, cases, catalogue_of(["one"]), histories, split_of(histories, cases))
    page = Page(render(report, [], []))
    assert page.open == []
    assert "figure" not in [tag for tag, _ in page.tags]
    assert "finds its own picture" not in render(report, [], [])


def test_write_report(found: tuple[EvaluationReport, list[ExampleUser]], tmp_path: Path) -> None:
    path = write_report(found[0], found[1], CURVES, tmp_path / "evaluation")
    assert path == tmp_path / "evaluation" / "report.html"
    assert sorted(file.name for file in path.parent.iterdir()) == ["cases.parquet", "report.html", "report.json"]
    about = json.loads((path.parent / "report.json").read_text(encoding="utf-8"))
    row = about["settings"][0]["rows"][0]
    assert row["metrics"]["ndcg@10"]["mean"] == found[0].headline.rows[0].metrics["ndcg@10"].mean
    assert about["knockouts"][0]["name"] == "drop_picture"
    assert about["slices"][0]["groups"]
    table = about["crossmodal"]["tables"][0]
    assert table["direction"] == "caption to picture"
    assert table["rows"][0]["recall"]["recall@10"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert table["rows"][1]["ahead"]["recall@10"]["mean"] == 1.0
    assert about["training_curves"][1]["loss"] is None
    assert about["examples"][0]["user_id"] == found[1][0].user_id
    assert "ranks" not in about


def test_picture_url_is_a_small_jpeg_of_the_same_colour() -> None:
    large = np.full((900, 300, 3), (10, 200, 30), np.uint8)
    kind, _, data = picture_url(large).partition(",")
    assert kind == "data:image/jpeg;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.size == (53, 160)
    assert np.abs(np.asarray(image).mean((0, 1)) - (10, 200, 30)).max() < 4


def test_example_of_a_target_that_was_no_candidate(found: tuple[EvaluationReport, list[ExampleUser]]) -> None:
    user = ExampleUser("u", 0, [], [], [ExampleItem("gone", None, None)])
    assert "not a candidate" in render(found[0], [user], [])
