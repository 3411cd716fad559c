"""Attributes to codes: what training's items teach, what is unknown afterwards, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from mmrec.errors import ArtifactError, ConfigError, RequestError
from mmrec.preprocessing.attribute_table import AttributeTable
from mmrec.preprocessing.attributes import (
    AttributePreprocessor,
    Buckets,
    Categories,
    as_days,
    attribute_text,
    cell_values,
)

TABLE = pd.DataFrame(
    {
        "colour": ["red", "red", "blue", "blue", "pink", None, " ", "red|blue"],
        "tags": ['["wool", "soft"]', "[]", '["wool"]', None, '["soft", "wool", "x"]', "[wool", "|", ""],
        "price": ["1", "2", "3", "4.5", "5e0", "60", None, "-7"],
    }
)


def fitted(**changes: object) -> AttributePreprocessor:
    settings = {"buckets": 4, "min_count": 2, "where": "encoders.attributes.columns"} | changes
    return AttributePreprocessor.fit(TABLE, **settings)  # type: ignore[arg-type]


class TestFit:
    def test_vocabulary_and_limits(self) -> None:
        words = fitted()
        assert words.columns == {
            "colour": Categories(("blue", "red")),
            "tags": Categories(("soft", "wool")),
            # Seven prices: -7, 1, 2, 3, 4.5, 5, 60; the quarters begin at the next price upward.
            "price": Buckets((2.0, 3.0, 5.0)),
        }
        assert words.sizes == (3, 3, 4)
        assert words.others == (0, 3)
        assert str(words) == "colour (2 values), tags (2 values), price (4 buckets)"

    def test_numbers_are_found_or_named(self) -> None:
        assert isinstance(fitted(buckets=7).columns["price"], Categories), "seven numbers for seven buckets"
        assert isinstance(fitted(numbers=()).columns["price"], Categories)
        assert isinstance(fitted(buckets=16, numbers=("price",)).columns["price"], Buckets)

    def test_dates_count_in_days(self) -> None:
        table = pd.DataFrame({"day": ["22 Nov 1995", "1996-01-31", "Feb 3, 1997", "4 May 1998", "", "soon"]})
        words = AttributePreprocessor.fit(table, buckets=2, min_count=1, numbers=("day",), where="")
        assert words.columns == {"day": Buckets((as_days("1997-02-03") or 0,), dates=True)}
        assert [words.encode({"day": day}) for day in ("1 January 1990", "2026-01-31T10:00", "7", "later")] == [
            (0,),
            (1,),
            (),
            (),
        ]
        words.check({"day": "1999-12-31"})
        with pytest.raises(RequestError, match="a date, such as"):
            words.check({"day": "7"})
        again = AttributePreprocessor.from_dict(json.loads(json.dumps(words.to_dict())))
        assert again == words

    def test_a_column_of_dates_is_found(self) -> None:
        days = pd.DataFrame({"day": [f"{number} Jan 2026" for number in range(1, 31)]})
        assert AttributePreprocessor.fit(days, buckets=4, min_count=1, where="").sizes == (4,)
        days.loc[0, "day"] = "soon"
        assert isinstance(AttributePreprocessor.fit(days, buckets=4, min_count=1, where="").columns["day"], Categories)

    def test_values_between_other_separators(self) -> None:
        table = pd.DataFrame({"cast": ["Ann, Bob", "Bob,Cy", '["Ann"]'], "tag": ["x,y", "x|y", "x"]})
        words = AttributePreprocessor.fit(table, buckets=2, min_count=1, separators={"cast": ","}, where="")
        assert words.columns == {"cast": Categories(("Ann", "Bob", "Cy"), ","), "tag": Categories(("x", "x,y", "y"))}
        assert words.encode({"cast": "Cy, Ann"}) == (1, 3)
        again = AttributePreprocessor.from_dict(json.loads(json.dumps(words.to_dict())))
        assert again == words

    def test_numbers_have_nothing_to_separate(self) -> None:
        with pytest.raises(ConfigError, match="values to separate in the attribute column 'price'.*separators"):
            fitted(separators={"price": ","})
        assert isinstance(fitted(separators={"price": ","}, numbers=()).columns["price"], Categories)

    @pytest.mark.parametrize("text", ["20260131", "2026-W05-6", "1/2/2026", "2026", ""])
    def test_what_is_no_date(self, text: str) -> None:
        assert as_days(text) is None

    def test_columns_that_teach_nothing(self) -> None:
        for table, numbers, message in (
            (pd.DataFrame({"a": [None, " ", "[]"]}), None, "values in the attribute column 'a'"),
            (pd.DataFrame({"a": ["x", "nan", "1_0"]}), ("a",), "numbers or dates in the attribute column 'a'"),
        ):
            with pytest.raises(ConfigError, match=message):
                AttributePreprocessor.fit(table, buckets=4, min_count=1, numbers=numbers, where="here")

    def test_one_price_for_nearly_all(self) -> None:
        table = pd.DataFrame({"a": ["1"] * 50 + ["2", "3"]})
        words = AttributePreprocessor.fit(table, buckets=4, min_count=1, numbers=("a",), where="")
        assert words.encode({"a": "1"}) == words.encode({"a": "-5"}) == (0,)


class TestCodes:
    @pytest.mark.parametrize(
        ("texts", "codes"),
        [
            ({"colour": "red"}, (2,)),
            ({"colour": " red ", "price": "2"}, (2, 7)),
            ({"price": "1.99"}, (6,)),
            ({"price": "1e9"}, (9,)),
            ({"price": "-1e9"}, (6,)),
            ({"price": "cheap"}, ()),
            ({"price": "nan"}, ()),
            ({"colour": "pink"}, (0,)),
            ({"colour": "green|mauve|red|red"}, (0, 2)),
            ({"tags": '["soft", 3, null]', "colour": "blue"}, (1, 3, 4)),
            ({"colour": "", "tags": "[]"}, ()),
            ({"size": "38"}, ()),
            ({}, ()),
        ],
    )
    def test_of_a_post(self, texts: dict[str, str], codes: tuple[int, ...]) -> None:
        assert fitted().encode(texts) == codes

    def test_a_catalogue_is_encoded_as_post_by_post(self) -> None:
        words, generator = fitted(), np.random.default_rng(0)
        table = TABLE.loc[generator.integers(0, len(TABLE), 40)].apply(lambda column: generator.permutation(column))
        table.loc[len(table)] = ["mauve", None, "?"]
        made = AttributeTable.of(table, words)
        expected = [
            words.encode({name: cell for name, cell in row.items() if isinstance(cell, str)})
            for row in table.to_dict("records")
        ]
        found = [() if row < 0 else tuple(made.codes[int(row)].tolist()) for row in made.rows]
        assert found == expected
        assert len(made) == len({codes for codes in expected if codes})
        assert len(np.unique(made.hashes, axis=0)) == len(made)
        gathered = made.gather(np.array([1, 0]))
        assert gathered.codes.tolist() == [*made.codes[1], *made.codes[0]]
        assert gathered.lengths.tolist() == [len(made.codes[1]), len(made.codes[0])]

    def test_a_catalogue_without_any(self) -> None:
        made = AttributeTable.of(pd.DataFrame({"colour": [None, None]}), fitted())
        assert (len(made), made.rows.tolist(), made.hashes.shape) == (0, [-1, -1], (0, 16))


class TestText:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (" red ", "red"),
            (3, "3"),
            (3.0, "3"),
            (1.5, "1.5"),
            (np.float32(2.5), "2.5"),
            (np.int64(7), "7"),
            (True, "true"),
            (["a", 2, None], '["a", "2"]'),
            (np.array(["é"], dtype=object), '["é"]'),
            ([], None),
            ("  ", None),
            (float("nan"), None),
            (None, None),
        ],
    )
    def test_of_a_value(self, value: object, text: str | None) -> None:
        assert attribute_text(value) == text

    def test_of_what_is_no_attribute(self) -> None:
        with pytest.raises(RequestError, match="got dict"):
            attribute_text({"a": 1})

    def test_values_of_a_cell(self) -> None:
        assert cell_values('["a|b", 2]') == ["a|b", "2"]
        assert cell_values("Comedy|Drama | ") == ["Comedy", "Drama"]
        assert cell_values("[broken") == ["[broken"]

    def test_text_where_a_number_is_read(self) -> None:
        fitted().check({"price": "3", "colour": "?"})
        with pytest.raises(RequestError, match="a number, got 'cheap', in attribute 'price'"):
            fitted().check({"price": "cheap"})


def test_kept_as_json() -> None:
    words = fitted()
    again = AttributePreprocessor.from_dict(json.loads(json.dumps(words.to_dict())))
    assert again == words
    assert again.fingerprint == words.fingerprint
    assert fitted(min_count=3).fingerprint != words.fingerprint != fitted(buckets=3).fingerprint
    for damaged in ({"a": {"values": [1]}}, {"a": {}}, {"a": {"edges": ["x"]}}):
        with pytest.raises(ArtifactError, match="of an attribute column"):
            AttributePreprocessor.from_dict(damaged)
