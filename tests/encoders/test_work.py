"""Counts of encoding work."""

from __future__ import annotations

import copy

from mmrec.encoders.work import EncodingWork


def test_shares() -> None:
    work = EncodingWork()
    assert (work.padding_share, work.cache_hit_share, work.contents) == (0.0, 0.0, 0)
    work.add(encoded=2, real_tokens=6, padded_tokens=8)
    work.add(cache_hits=6)
    assert work.padding_share == 1 - 6 / 8
    assert work.contents == 8
    assert work.cache_hit_share == 6 / 8


def test_since_a_copy() -> None:
    work = EncodingWork(encoded=1, cache_hits=2, real_tokens=3, padded_tokens=4)
    before = work.copy()
    assert work.since(before) == EncodingWork()
    work.add(encoded=10, cache_hits=20, real_tokens=30, padded_tokens=40)
    assert before == EncodingWork(encoded=1, cache_hits=2, real_tokens=3, padded_tokens=4)
    assert work.since(before) == EncodingWork(encoded=10, cache_hits=20, real_tokens=30, padded_tokens=40)


def test_an_encoder_that_counts_can_be_copied() -> None:
    work = EncodingWork(encoded=3)
    twin = copy.deepcopy(work)
    work.add(encoded=1)
    assert (work.encoded, twin.encoded) == (4, 3)
