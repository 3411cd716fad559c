"""Bodies: read no further than allowed, strict JSON, multipart in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from mmrec.serving.http.body import MOST_VALUES, parse, read_body, split_body
from mmrec.serving.problems import ProblemError
from mmrec.serving.schemas import ScoreRequest

FORM = "multipart/form-data; boundary=X"


def part(name: str, data: bytes, *, extra: str = "") -> bytes:
    return (
        b'--X\r\nContent-Disposition: form-data; name="' + name.encode() + f'"{extra}\r\n\r\n'.encode() + data + b"\r\n"
    )


def status_of(body: bytes, content_type: str) -> int:
    with pytest.raises(ProblemError) as refused:
        split_body(body, content_type)
    return refused.value.status


class TestReading:
    @staticmethod
    def read(chunks: list[bytes], *, declared: str | None, limit: int) -> tuple[bytes | int, int]:
        """Return the body, or the status of the refusal; and how many chunks were taken."""
        taken = 0

        async def stream() -> AsyncIterator[bytes]:
            nonlocal taken
            for chunk in chunks:
                taken += 1
                yield chunk

        try:
            return asyncio.run(read_body(stream(), declared=declared, limit=limit)), taken
        except ProblemError as refused:
            return refused.status, taken

    def test_up_to_the_limit(self) -> None:
        assert self.read([b"ab", b"cd"], declared="4", limit=4) == (b"abcd", 2)
        assert self.read([], declared=None, limit=4) == (b"", 0)

    @pytest.mark.parametrize("declared", ["5", "99999999999999999999999999"])
    def test_a_length_beyond_it_is_refused_unread(self, declared: str) -> None:
        assert self.read([b"abcde"], declared=declared, limit=4) == (413, 0)

    @pytest.mark.parametrize("declared", [None, "1", "x"])
    def test_a_body_without_or_with_a_false_length_is_not_read_whole(self, declared: str | None) -> None:
        assert self.read([b"abc"] * 10, declared=declared, limit=4) == (413, 2)


class TestJson:
    def test_fields(self) -> None:
        text = '{"history": ["a", 7, {"caption": "größer", "image": "part:p"}], "candidates": [{"item_id": 3}]}'
        request = parse(text.encode(), ScoreRequest)
        assert request.history is not None
        assert request.history[:2] == ["a", 7]
        assert request.user_id is None

    @pytest.mark.parametrize(
        "text",
        [
            b'{"candidates": [NaN]}',
            b'{"candidates": ["a"], "user_id": Infinity}',
            b'{"candidates": [-Infinity]}',
            b'{"candidates": [1e999]}',
            b'{"candidates": [' + b"9" * 5000 + b"]}",
            b'{"candidates": ["\\ud800"]}',
            b'{"candidates": [{"caption": "\\udc00"}]}',
            b'{"candidates": [{"\\udc00": "x"}]}',
            b"[" * 100_000,
            b"\xff\xfe",
            b"",
            b"[]",
            b"null",
            b'{"candidates": []}',
            b'{"candidates": [true]}',
            b'{"candidates": [1.5]}',
            b'{"candidates": [null]}',
            b'{"candidates": "a"}',
            b'{"candidates": [""]}',
            b'{"candidates": ["a\\u0000b"]}',
            b'{"candidates": ["' + b"x" * 257 + b'"]}',
            b'{"candidates": ["a"], "candidate": []}',
            b'{"candidates": [{"caption": 3}]}',
            b'{"candidates": [{"image": {"url": "http://x"}}]}',
        ],
    )
    def test_refused(self, text: bytes) -> None:
        with pytest.raises(ProblemError) as refused:
            parse(text, ScoreRequest)
        assert refused.value.status == 422

    @pytest.mark.parametrize("entry", [b"{}", b"null", b"[]", b'""', b"{}, [[[]]]"])
    def test_more_values_than_any_request_has(self, entry: bytes) -> None:
        for count, status in ((MOST_VALUES // 10, 422), (MOST_VALUES, 413), (6 * MOST_VALUES, 413)):
            with pytest.raises(ProblemError) as refused:
                parse(b'{"candidates": [' + b",".join([entry] * count) + b"], "  # what comes after is not looked at
                      b'"candidate": []}', ScoreRequest)  # fmt: skip
            assert refused.value.status == status

    def test_a_body_of_many_values_that_are_right(self) -> None:
        text = b'{"candidates": [' + b",".join([b'"a"'] * (MOST_VALUES - 10)) + b"]}"
        assert len(parse(text, ScoreRequest).candidates) == MOST_VALUES - 10

    def test_commas_in_text_are_no_values(self) -> None:
        text = b'{"candidates": [{"caption": "' + b"," * MOST_VALUES + b'"}]}'
        assert len(parse(text, ScoreRequest).candidates) == 1

    def test_the_refusal_names_the_place_and_repeats_no_content(self) -> None:
        with pytest.raises(ProblemError) as refused:
            parse(b'{"candidates": [{"caption": ["a secret caption"]}]}', ScoreRequest)
        places = [entry["where"] for entry in refused.value.errors]
        assert "candidates.0.RawPost.caption" in places
        assert "secret" not in str(refused.value) + str(refused.value.errors)


class TestMultipart:
    def test_parts(self) -> None:
        picture = bytes(range(256)) + b"\r\n--Y\r\n"
        body = part("request", b'{"a": 1}') + part("p1", picture, extra='; filename="../../a.jpg"') + b"--X--\r\n"
        payload = split_body(body, FORM)
        assert payload.text == b'{"a": 1}'
        assert dict(payload.parts) == {"p1": picture}

    def test_json_alone(self) -> None:
        assert split_body(b"{}", "application/json; charset=utf-8").text == b"{}"

    def test_other_types(self) -> None:
        for content_type in ("", "text/plain", "application/x-www-form-urlencoded", "multipart/mixed; boundary=X"):
            assert status_of(b"{}", content_type) == 415

    def test_damaged(self) -> None:
        whole = part("request", b"{}")
        assert status_of(whole + b"--X--\r\n", "multipart/form-data") == 400
        assert status_of(b"nothing of the kind", FORM) == 400
        assert status_of(whole, FORM) == 400
        assert status_of(whole[:-9], FORM) == 400
        assert status_of(whole + whole + b"--X--\r\n", FORM) == 400, "twice the same name"
        assert status_of(part("", b"{}") + b"--X--\r\n", FORM) == 400
        assert status_of(part("other", b"{}") + b"--X--\r\n", FORM) == 422, "no part called request"

    def test_too_many_parts(self) -> None:
        body = b"".join(part(f"p{number}", b"") for number in range(2001))
        assert status_of(body + b"--X--\r\n", FORM) == 400
