"""Ids that hold slashes: published under one, a post is found, shown and taken back like any other."""

from __future__ import annotations

import pytest

from tests.serving.served import Server, in_base64, picture

POST = {"caption": "a soft green scarf", "image": in_base64(picture(7))}


@pytest.mark.parametrize("item_id", ["a/b", "/a", "a/", "a//b", "similar/a", "a/image/b"])
def test_an_item(server: Server, item_id: str) -> None:
    path = f"/v1/items/{item_id.replace('/', '%2F')}"
    published = server.post("items:batch", {"items": [{"item_id": item_id, **POST}]})
    assert published["results"][0]["error"] is None  # type: ignore[index]
    assert server.get(path)["item_id"] == item_id
    assert len(server.get(f"{path}/similar", k=3)["results"]) == 3  # type: ignore[arg-type]
    assert server.client.get(f"{path}/image").headers["content-type"] == "image/jpeg"
    again = server.client.put(path, json={"caption": "another"})
    assert (again.status_code, again.json()["created"]) == (200, False)
    assert server.client.delete(path).status_code == 200
    server.get(path, 404)
    assert not server.service.items.known(item_id)


def test_a_user(server: Server) -> None:
    server.post("feedback", {"events": [{"user_id": "a/b", "item_id": "p07"}]})
    answer = server.get("/v1/users/a%2Fb")
    assert answer["user_id"] == "a/b"
    assert [event["item_id"] for event in answer["history"]] == ["p07"]  # type: ignore[attr-defined]


def test_other_methods_are_refused(server: Server) -> None:
    assert server.client.patch("/v1/items/a%2Fb").status_code == 405
    assert server.client.post("/v1/users/a%2Fb").status_code == 405
