"""The description of the interface as a page."""

from __future__ import annotations

from mmrec.serving.http.docs_page import docs_page


def page_of(schema: dict[str, object]) -> str:
    info = {"title": "t", "version": "1"}
    return docs_page({"info": info, "paths": {}, "components": {"schemas": {"S": schema}}}).decode()


def test_properties_of_an_object_are_told_apart() -> None:
    inline = {"type": "object", "properties": {"x": {"type": "number"}, "y": {"type": "string"}}}
    assert "x: number, y: string" in page_of({"properties": {"place": inline}})


def test_names_are_marked_and_all_else_is_escaped() -> None:
    page = page_of({"description": "at most ``<k>`` items, <b>no more</b>"})
    assert "at most <code>&lt;k&gt;</code> items, &lt;b&gt;no more&lt;/b&gt;" in page
