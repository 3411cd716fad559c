"""Requests a second, by key: a bucket of tokens each, and 429 with the time to wait."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from mmrec.errors import ConfigError
from mmrec.serving.http.keys import Key, KeyRing, create_key
from mmrec.serving.http.rates import Rates, TokenBucket
from mmrec.serving.limits import Limits
from mmrec.serving.problems import ProblemError
from tests.serving.served import LIMITS, Serve


class Clock:
    """A clock that goes when it is told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def passes(rates: Rates, key: Key | None, count: int) -> int:
    """How many of some requests are let through."""
    passed = 0
    for _ in range(count):
        with suppress(ProblemError):
            rates.check(key)
            passed += 1
    return passed


def test_a_bucket_fills_again() -> None:
    clock = Clock()
    bucket = TokenBucket(2.0, 3, clock)
    assert [bucket.take() for _ in range(4)] == [0, 0, 0, 0.5]
    clock.now = 0.25
    assert bucket.take() == 0.25
    clock.now = 1.0
    assert [bucket.take() for _ in range(3)] == [0, 0, 0.5]
    clock.now = 100.0
    assert [bucket.take() for _ in range(4)] == [0, 0, 0, 0.5], "never more than the burst"


def test_every_key_has_its_own_and_may_have_another_rate() -> None:
    clock = Clock()
    rates = Rates(Limits(rate=1.0, burst=2), clock)
    one, other = Key("one", "read", ""), Key("other", "read", "")
    free, slow = Key("free", "read", "", rate=0.0), Key("slow", "read", "", rate=0.1, burst=1)
    assert [passes(rates, key, 5) for key in (one, other, free, slow, None)] == [2, 2, 5, 1, 5]
    with pytest.raises(ProblemError) as refused:
        rates.check(slow)
    assert refused.value.headers == {"Retry-After": "10"}
    clock.now = 1.0
    assert [passes(rates, key, 5) for key in (one, slow)] == [1, 0]


def test_callers_without_a_key_share_one_where_that_is_set() -> None:
    assert passes(Rates(Limits(loopback_rate=1.0, burst=2), Clock()), None, 5) == 2


def test_over_http(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    fast = create_key(path, name="fast", scope="read", rate=0.0)
    slow = create_key(path, name="slow", scope="read", rate=0.001, burst=2)
    server = serve(limits=replace(LIMITS, rate=0.001, burst=1), keys=KeyRing.load(path))

    def statuses(key: str) -> list[int]:
        headers = {"Authorization": f"Bearer {key}"}
        return [server.client.get("/v1/model", headers=headers).status_code for _ in range(4)]

    assert statuses(fast) == [200] * 4
    assert statuses(slow) == [200, 200, 429, 429]
    answer = server.client.get("/v1/model", headers={"Authorization": f"Bearer {slow}"})
    assert re.fullmatch(r"[1-9]\d*", answer.headers["Retry-After"])
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["title"] == "Too many requests"
    assert [server.client.get("/health/live").status_code for _ in range(3)] == [200] * 3, "of nobody's rate"
    assert statuses("mmrec_wrong") == [401] * 4


def test_rates_of_a_file_stay_when_a_key_is_added(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    create_key(path, name="a", scope="read", rate=2.5, burst=7)
    create_key(path, name="b", scope="write")
    assert [(key.rate, key.burst) for key in KeyRing.load(path).keys] == [(2.5, 7), (None, None)]


@pytest.mark.parametrize(
    "line", ["rate = -1", "rate = true", 'rate = "fast"', "rate = inf", "burst = 0", "burst = 1.5"]
)
def test_wrong_rates(tmp_path: Path, line: str) -> None:
    create_key(tmp_path / "keys.toml", name="a", scope="read")
    with (tmp_path / "keys.toml").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ConfigError, match=r"a (rate|burst) of"):
        KeyRing.load(tmp_path / "keys.toml")
