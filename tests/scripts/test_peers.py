"""A peer learns from plain files, and is judged as mmrec judges itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peer import parse
from peers.export import export
from peers.judge import BlockScorer, load_split
from peers.listing import PEERS
from peers.runners.ease import fit
from peers.runners.plain import Clock, Data, Events, Questions, Task
from peers.running import Plan, find_peer, run_peer
from peers.table import markdown

from mmrec.errors import ArtifactError, ConfigError, FeedError
from mmrec.evaluation.comparison import compare
from mmrec.evaluation.evaluate import validation_values
from mmrec.evaluation.settings import settings_of
from mmrec.run_folder import RunFolder
from tests.feeds import write_feed

ROOT = Path(__file__).parents[2]
ITEMS, USERS, EVENTS = 12, 30, 6


@pytest.fixture(params=["leave_last_out", "last_day"], scope="module")
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of a made feed whose users walk round a circle of items; days repeat some of them."""
    generator = np.random.default_rng(0)
    day = 86_400_000
    rows = []
    for user in range(USERS):
        start = int(generator.integers(ITEMS))
        step = generator.integers(1, 3, EVENTS).cumsum()
        rows += [(f"u{user}", f"i{(start + move) % ITEMS}", (number // 2) * day) for number, move in enumerate(step)]
        rows.append((f"u{user}", f"i{(start + step[0]) % ITEMS}", EVENTS // 2 * day))
    folder = tmp_path_factory.mktemp(request.param)
    feed = write_feed(folder / "feed", interactions=rows, item_ids=[f"i{row}" for row in range(ITEMS)])
    if request.param != "leave_last_out":
        from data_tools.split_choices import SplitChoices
        from data_tools.splits import write_split

        write_split(feed, name=request.param, kind=request.param, choices=SplitChoices())
    export(feed, request.param, folder / "data")
    return folder / "data"


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(seed=0, limit=60, threads=1, environments=tmp_path / "environments", keep_scores=True)


def test_no_test_target_is_given_away(data: Path) -> None:
    catalogue, histories, split = load_split(data)
    with np.load(data / "test.npz") as held:
        assert not [name for name in held if "target" in name]
    read = Data.load(data)
    targets = split.test.targets(histories)
    final = read.final()
    pairs = set(zip(final.users.tolist(), final.items.tolist(), final.timestamps.tolist(), strict=True))
    events = targets.values
    asked = zip(
        histories.user_rows[events].tolist(),
        histories.item_rows[events].tolist(),
        histories.timestamps[events].tolist(),
        strict=True,
    )
    assert len(events) > 0
    assert not pairs & set(asked)
    assert (len(read.train.users), read.num_items) == (int(split.train_events.sum()), len(catalogue))
    assert len(read.train.users) < len(final.users)


def test_histories_and_validation_targets_are_those_of_the_split(data: Path) -> None:
    _, histories, split = load_split(data)
    read = Data.load(data)
    for questions, cases in ((read.validation, split.validation), (read.test, split.test)):
        before = cases.histories(histories)
        assert questions.items.tolist() == histories.item_rows[before.values].tolist()
        assert questions.offsets.tolist() == before.offsets.tolist()
        some = np.arange(len(cases))[::-3]
        part = questions.take(some)
        expected = [histories.item_rows[before[int(case)]].tolist() for case in some]
        found = [part.items[low:high].tolist() for low, high in zip(part.offsets, part.offsets[1:], strict=False)]
        assert found == expected
    targets = split.validation.targets(histories)
    assert read.validation.target_items.tolist() == histories.item_rows[targets.values].tolist()


def test_a_runners_own_validation_is_the_librarys(data: Path) -> None:
    """Coarse scores, so that ties abound: they count against the peer on both sides."""
    _, histories, split = load_split(data)
    read = Data.load(data)
    cases = split.validation
    scores = np.random.default_rng(1).integers(0, 4, (len(cases), ITEMS)).astype(np.float32)

    class Given:
        def scores(self, chosen: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(scores[chosen])

    setting = settings_of(split, cases, histories)[0]
    expected = validation_values(Given(), cases, histories, setting)["ndcg@10"].mean()
    assert read.ndcg(read.validation, lambda chosen: scores[chosen]) == pytest.approx(expected, abs=1e-12)


def test_a_peer_is_judged_as_mmrec_judges_the_same_scores(data: Path, plan: Plan) -> None:
    report = run_peer("ease", data, plan)
    run = data / "runs" / "ease-seed0"
    _, histories, split = load_split(data)
    setting = settings_of(split, split.test, histories)[0]
    expected = validation_values(BlockScorer(run), split.test, histories, setting)
    row = report.headline.rows[0]
    assert report.headline.name == setting.name
    for name, values in expected.items():
        assert row.metrics[name].mean == pytest.approx(values.mean(), abs=1e-12)
    result = json.loads((run / "result.json").read_text())
    assert (result["ended"], result["seed"], result["threads"]) == ("closed form", 0, 1)
    assert result["versions"]["numpy"] == np.__version__
    assert result["peak_mb"] > 10


def test_runs_stand_in_one_table_and_are_compared_case_by_case(data: Path, plan: Plan) -> None:
    reports = {name: run_peer(name, data, plan) for name in ("popularity", "ease")}
    text = markdown(data)
    for name, report in reports.items():
        figure = report.headline.rows[0].metrics["ndcg@10"].mean
        assert f"| {PEERS[name].title} |" in text
        assert f"{figure:.4f}".removeprefix("0") in text
    folders = [RunFolder(data / "runs" / f"{name}-seed0").evaluation("test") for name in ("ease", "popularity")]
    found = compare(folders[0], folders[1]).settings[reports["ease"].headline.name]["ndcg@10"]
    assert found.first == pytest.approx(reports["ease"].headline.rows[0].metrics["ndcg@10"].mean)
    assert found.second == pytest.approx(reports["popularity"].headline.rows[0].metrics["ndcg@10"].mean)
    own = markdown(data, [data / "runs" / "ease-seed0"])
    assert "| mmrec |" in own
    assert f"{found.difference.mean:+.4f}".replace("0.", ".", 1) in own


def test_scores_of_other_cases_are_refused(data: Path, plan: Plan) -> None:
    run_peer("ease", data, plan)
    run = data / "runs" / "ease-seed0"
    last = max(run.glob("scores-*.npy"))
    np.save(last, np.load(last)[:-1])
    from peers.judge import judge

    with pytest.raises(ArtifactError, match="scores of"):
        judge(data, run, title="short")


def test_a_split_that_changed_is_refused(data: Path, tmp_path: Path) -> None:
    about = json.loads((data / "about.json").read_text())
    (tmp_path / "about.json").write_text(json.dumps(about | {"split_hash": "another"}))
    with pytest.raises(FeedError, match="exported"):
        load_split(tmp_path)


def test_what_a_failed_peer_said_is_shown(data: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    monkeypatch.setitem(PEERS, "broken", replace(PEERS["ease"], runner="nowhere"))
    with pytest.raises(RuntimeError, match="nowhere"):
        run_peer("broken", data, plan)
    with pytest.raises(ConfigError, match="rectools-sasrec"):
        find_peer("rectools-sasrek")


def test_ease_is_the_closed_form() -> None:
    """Two items that always come together: off the diagonal, P12 / P22 with P = (G + l2)^-1 gives 4 / 6."""
    gram = np.array([[4.0, 4.0], [4.0, 4.0]])
    assert fit(gram, 2.0) == pytest.approx(np.array([[0.0, 4 / 6], [4 / 6, 0.0]]))


def test_a_task_writes_every_case_in_blocks(tmp_path: Path) -> None:
    number = 1200
    none = np.zeros(0, np.int64)
    questions = Questions(
        np.arange(number),
        np.arange(number),
        np.arange(number + 1),
        np.zeros(number, np.int64),
        np.zeros(number, np.int64),
        np.zeros(number + 1, np.int64),
        none,
    )
    data = Data(tmp_path, {"num_items": 3, "num_users": number}, Events(none, none, none), questions, questions)
    task = Task(data, tmp_path, "made", 0, Clock(1))
    task.finish(
        lambda cases: np.repeat(cases[:, None], 3, axis=1).astype(np.float32),
        fit_seconds=0,
        ended="epochs",
        settings={},
    )
    scorer = BlockScorer(tmp_path)
    assert len(scorer) == number
    assert scorer.scores(np.array([0, 511, 512, 1199]))[:, 0].tolist() == [0, 511, 512, 1199]


def test_all_runs_what_has_not_run_and_writes_the_table(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "peers.md"
    out.write_text("Said by hand.\n\n<!-- peers -->\n\nOld.\n")
    words = ["all", "--data", str(data), "--peers", "popularity", "ease", "--out", str(out), "--seed", "3"]
    asked = parse(words)
    assert asked.call(asked) == 0
    assert "popularity, data: " in capsys.readouterr().out
    asked.call(asked)
    said = capsys.readouterr().out
    assert "popularity, data: " not in said
    assert out.read_text() == "Said by hand.\n\n<!-- peers -->\n\n" + said.rstrip("\n") + "\n"


def test_runners_know_nothing_of_mmrec() -> None:
    for path in (ROOT / "scripts" / "peers" / "runners").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "from mmrec" not in text, path
