"""What a profile shows and writes, in arithmetic."""

from __future__ import annotations

from mmrec.training.profile import Profile, Row


def test_table_and_json() -> None:
    rows = (Row("fusion", 1.5, backward_seconds=1.0, count=3), Row("other", 0.5))
    profile = Profile(2.0, 4, rows, (Row("collation", 0.2, count=4),), {"items_named": 7.0}).with_figures(
        {"items_distinct": 5.0}, {"device": "cpu"}
    )
    columns, shown = profile.table()
    assert [column.strip() for column in columns] == [
        "section",
        "ms per step",
        "of it backward",
        "share",
        "count",
        "ms each",
    ]
    assert [[cell.strip() for cell in line] for line in shown] == [
        ["fusion", "375.00", "250.00", "75.0%", "3", "500.00"],
        ["other", "125.00", "", "25.0%", "", ""],
        ["sum", "500.00", "", "100.0%", "", ""],
    ]
    assert {len(line[1]) for line in (columns, *shown)} == {len("ms per step")}
    assert [cell.strip() for cell in profile.loader_table()[1][0]] == ["collation", "50.00", "10.0%", "4", "50.00"]
    written = profile.to_dict()
    assert written["sections"] == [
        {
            "section": "fusion",
            "seconds": 1.5,
            "backward_seconds": 1.0,
            "share": 0.75,
            "count": 3,
            "ms_per_step": 375.0,
        },
        {"section": "other", "seconds": 0.5, "backward_seconds": 0.0, "share": 0.25, "count": 0, "ms_per_step": 125.0},
    ]
    assert {name: written[name] for name in ("device", "seconds", "steps", "figures")} == {
        "device": "cpu",
        "seconds": 2.0,
        "steps": 4,
        "figures": {"items_named": 7.0, "items_distinct": 5.0},
    }


def test_a_profile_without_a_step_divides_by_nothing() -> None:
    assert Profile(0.0, 0, (Row("other", 0.0),)).table()[1][0][1].strip() == "0.00"
