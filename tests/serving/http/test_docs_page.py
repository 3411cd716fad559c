"""The description of the interface as a page."""

from __future__ import annotations

from mmrec.serving.http.docs_page import docs_page


def test_properties_of_an_object_are_told_apart() -> None:
    inline = {"type": "object", "properties": {"x": {"type": "number"}, "y": {"type": "string"}}}
    page = docs_page(
        {
            "info": {"title": "t", "version": "1"},
            "paths": {},
            "components": {"schemas": {"S": {"properties": {"place": inline}}}},
        }
    ).decode()
    assert "x: number, y: string" in page
