"""The page in a browser without a head: every view does its job, with a key, without one, and on a phone.

Screenshots of every view go to ``$MMREC_ARTEFACTS``, where that is set.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvicorn

from mmrec.serving.answers.service import Service
from mmrec.serving.http.app import build_app
from mmrec.serving.http.keys import KeyRing, create_key
from mmrec.serving.model.exported import Pair
from mmrec.serving.stores.sqlite_store import SqliteStore
from tests.serving.served import LIMITS, picture
from tests.tiny_run import CAPTION_ONLY

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

playwright = pytest.importorskip("playwright.sync_api", reason="the page is tested with playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
PHONE = {"width": 390, "height": 844}
HEARTBEAT, PATIENCE = 0.01, 15_000
playwright.expect.set_options(timeout=PATIENCE)


@contextmanager
def listening(service: Service, keys: KeyRing | None) -> Iterator[str]:
    """Serve on a free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    app = build_app(service, keys=keys)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(HEARTBEAT)
    yield f"http://localhost:{port}"
    server.should_exit = True
    thread.join()


class Studio:
    """One service behind two doors, an open one and one that asks for keys, and a browser."""

    def __init__(self, browser: Browser, service: Service, open_url: str, locked_url: str, key: str) -> None:
        self.browser, self.service, self.open_url, self.locked_url, self.key = (
            browser,
            service,
            open_url,
            locked_url,
            key,
        )

    def shoot(self, page: Page, name: str) -> None:
        folder = os.environ.get("MMREC_ARTEFACTS")
        if folder:
            page.screenshot(path=str(Path(folder) / f"studio-{name}.png"))


@pytest.fixture(scope="module")
def studio(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    folder = tmp_path_factory.mktemp("studio")
    service = Service(pair, SqliteStore(folder / "data"), limits=LIMITS)
    key = create_key(folder / "keys.toml", name="editor", scope="write")
    ring = KeyRing.load(folder / "keys.toml")
    with (
        listening(service, None) as open_url,
        listening(service, ring) as locked_url,
        playwright.sync_playwright() as p,
    ):
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield Studio(browser, service, open_url, locked_url, key)
        browser.close()
    service.close()


@contextmanager
def opened(studio: Studio, url: str, path: str, *, complaints: bool = False, **context: object) -> Iterator[Page]:
    """A fresh page, which must not complain unless it is meant to."""
    fresh = studio.browser.new_context(**context)  # type: ignore[arg-type]
    page = fresh.new_page()
    page.set_default_timeout(PATIENCE)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(f"{url}/{path}")
    yield page
    fresh.close()
    assert complaints or not said, said


def cards(page: Page, label: str) -> list[str]:
    """The ids of a grid's cards, once there are some."""
    page.get_by_label(label, exact=True).locator(".card[data-id]").first.wait_for()
    return [str(card.get_attribute("data-id")) for card in page.get_by_label(label, exact=True).locator(".card").all()]


def see_pictures(page: Page, label: str) -> None:
    """Wait until the first picture of a grid is there and is one."""
    image = page.get_by_label(label, exact=True).locator("img").first
    image.wait_for()
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0


def test_the_description_needs_nobody_else(studio: Studio) -> None:
    with opened(studio, studio.open_url, "docs") as page:
        score = page.locator("details", has=page.get_by_text("/v1/score", exact=True))
        score.locator("summary").click()
        score.get_by_role("link", name="ScoreRequest").first.click()
        playwright.expect(page.locator("#ScoreRequest")).to_be_in_viewport()
        assert page.evaluate("getComputedStyle(document.body).margin") == "0px", "the style was let in"
        assert page.evaluate("performance.getEntriesByType('resource').map(entry => entry.name)") == []
        studio.shoot(page, "docs")


def test_a_user_is_found_shown_and_ranked_again(studio: Studio) -> None:
    with opened(studio, studio.open_url, "") as page:
        page.keyboard.press("/")
        page.keyboard.type("u0")
        page.get_by_role("option").nth(2).wait_for()
        for key in ("ArrowDown", "ArrowDown", "Enter"):
            page.keyboard.press(key)
        page.get_by_role("heading", name="u01").wait_for()
        first = cards(page, "Recommendations")
        assert len(first) == 24
        see_pictures(page, "Recommendations")
        history = cards(page, "What they chose, the most recent first")
        assert len(history) == 6
        assert page.locator(".why").count() > 0
        card = page.get_by_label("Recommendations", exact=True).locator(".card-open").first
        assert re.search(r"rank 1, score .*, because of ", str(card.get_attribute("aria-label")))
        studio.shoot(page, "user")

        card.focus()
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.closest('.card').dataset.id") == first[1]
        page.keyboard.press("Enter")
        page.get_by_role("dialog").get_by_label("Similar posts", exact=True).locator(".card[data-id]").first.wait_for()
        page.keyboard.press("Escape")

        with page.expect_response("**/v1/recommend") as answer:
            page.get_by_label("Diversity").fill("0.9")
        asked = answer.value.request.post_data_json
        assert (asked["diversity"], asked["user_id"]) == (0.9, "u01")
        page.get_by_text("Re-ranked").wait_for()
        expected = [str(entry["item_id"]) for entry in answer.value.json()["results"]]
        assert cards(page, "Recommendations") == expected
        assert page.locator(".rank i").count() > 0, "it says from where they moved"


def test_what_was_really_chosen_next_is_shown(studio: Studio) -> None:
    with opened(studio, studio.open_url, "#/user/u03") as page:
        page.get_by_text("Before the next choice").click()
        page.get_by_role("heading", name="What they really chose next").wait_for()
        assert len(cards(page, "What they chose, the most recent first")) < 6
        assert re.search(r"at rank \d+ of 30 posts", page.locator(".next").inner_text())
        studio.shoot(page, "before")


def test_a_post_is_inspected_published_and_taken_back(studio: Studio, tmp_path: Path) -> None:
    (tmp_path / "new.png").write_bytes(picture(3))
    with opened(studio, studio.open_url, "#/post") as page:
        page.locator("input[type=file]").set_input_files(tmp_path / "new.png")
        page.get_by_label("Caption", exact=True).fill("a soft green scarf")
        page.get_by_text("Of all 20 users").wait_for()
        page.get_by_role("heading", name="Without the picture").wait_for()
        assert page.locator(".tile").count() == 3
        assert page.locator("tbody tr").count() == 8
        cards(page, "Nearest posts")
        studio.shoot(page, "post")
        page.get_by_label("Id", exact=True).fill("from/the-page")
        page.get_by_role("button", name="Publish").click()
        page.get_by_text("In what is recommended").wait_for()
        assert re.search(r"not offered\s+rank \d+", page.locator(".facts-table").inner_text())
        assert studio.service.items.known("from/the-page")
        studio.shoot(page, "published")
        page.get_by_role("button", name="Take it back", exact=True).click()
        page.get_by_text("Taken back: it is offered no more.").wait_for()
        assert not studio.service.items.known("from/the-page")


def test_an_id_that_is_taken_is_replaced_only_when_that_is_said_again(studio: Studio) -> None:
    with opened(studio, studio.open_url, "#/post") as page:

        def publish(caption: str, item_id: str) -> None:
            page.get_by_label("Caption", exact=True).fill(caption)
            page.get_by_label("Id", exact=True).fill(item_id)
            page.get_by_role("button", name="Publish").click()

        def caption() -> str:
            item = studio.service.items.find("taken")
            return "" if item is None else str(studio.service.items.caption(item))

        publish("the first scarf", "taken")
        page.get_by_role("button", name="Take it back", exact=True).wait_for()
        publish("the second scarf", "taken")
        page.get_by_role("alert").get_by_text("the first scarf").wait_for()
        again = page.get_by_role("button", name="Replace it")
        playwright.expect(again).to_be_focused()
        studio.shoot(page, "taken")
        assert caption() == "the first scarf"
        page.get_by_label("Id", exact=True).fill("another")
        playwright.expect(page.get_by_role("alert")).to_have_count(0)
        publish("the second scarf", "taken")
        page.get_by_role("alert").get_by_text("This id is taken").wait_for()
        page.keyboard.press("Enter")
        back = page.get_by_role("button", name="Take it back (what it replaced stays gone)")
        back.wait_for()
        assert caption() == "the second scarf"
        page.get_by_label("Id", exact=True).fill("p01")
        back.click()
        page.get_by_text("neither it nor what it replaced").wait_for()
        assert caption() == ""
        assert studio.service.items.known("p01"), "what is in the field by then is another matter"


def test_search_by_words_picture_posts_and_conditions(studio: Studio, tmp_path: Path) -> None:
    (tmp_path / "asked.png").write_bytes(picture(4))
    with opened(studio, studio.open_url, "#/search") as page:
        page.get_by_label("Words to search for").fill("green scarf")
        by_words = cards(page, "Found")
        page.get_by_label("Conditions on attributes").fill("stock<5")
        playwright.expect(page.get_by_label("Found", exact=True).locator(".card")).to_have_count(5)
        assert set(cards(page, "Found")) <= {"p00", "p01", "p02", "p03", "p04"}
    with opened(studio, studio.open_url, "#/search?text=scarf", complaints=True) as page:
        page.get_by_label("Conditions on attributes").fill("stock?5")
        page.get_by_role("alert").wait_for()
    with opened(studio, studio.open_url, f"#/search?items={CAPTION_ONLY}") as page:
        assert cards(page, "Found")[0] == CAPTION_ONLY
        assert page.locator(".grid .placeholder").first.inner_text(), "a post without a picture shows its caption"
        with page.expect_response("**/v1/search") as answer:
            page.locator("input[type=file]").set_input_files(tmp_path / "asked.png")
        assert answer.value.status == 200
        with page.expect_response("**/v1/search") as answer:
            page.get_by_label("The posts count").fill("0.2")
        assert answer.value.json()["results"][0]["item_id"] == cards(page, "Found")[0]
        playwright.expect(page.locator(".waiting")).to_have_count(0)
        assert cards(page, "Found") != by_words
        studio.shoot(page, "search")


def test_the_map_by_keyboard_and_pointer(studio: Studio) -> None:
    with opened(studio, studio.open_url, "#/map") as page:
        assert len(cards(page, "Posts in view")) == 24
        canvas = page.get_by_role("application")
        canvas.focus()
        for _ in range(8):
            page.keyboard.press("+")
        playwright.expect(page.get_by_label("Posts in view", exact=True).locator(".card")).not_to_have_count(24)
        page.goto(f"{studio.open_url}/#/map?item=p07")
        tip = page.locator(".tip")
        tip.locator("img").wait_for()
        studio.shoot(page, "map")
        canvas.focus()
        page.keyboard.press("Enter")
        page.get_by_role("dialog").get_by_text("p07", exact=True).wait_for()


def test_health(studio: Studio) -> None:
    with opened(studio, studio.open_url, "#/health") as page:
        page.get_by_text("Ready", exact=True).wait_for()
        facts = page.locator(".facts").inner_text()
        assert studio.service.model_hash in facts
        assert re.search(r"Export\s+vectors\s+Index\s+faiss flat", facts)
        assert page.get_by_role("row", name=re.compile("^model")).count() == 1
        studio.shoot(page, "health")


def test_a_broken_picture_shows_a_placeholder(studio: Studio) -> None:
    with opened(studio, studio.open_url, "", complaints=True) as page:
        page.route("**/image", lambda route: route.fulfill(body=b"no picture", content_type="image/jpeg"))
        page.goto(f"{studio.open_url}/#/user/u02")
        page.get_by_label("Recommendations", exact=True).locator(".placeholder").first.wait_for()
        playwright.expect(page.locator(".grid img")).to_have_count(0)


def test_a_wrong_key_asks_again_and_a_right_one_lets_in(studio: Studio) -> None:
    with opened(studio, studio.locked_url, "#/user/u01") as page:
        page.get_by_role("heading", name="Sign in").wait_for()
        studio.shoot(page, "signin")
    with opened(studio, studio.locked_url, "#/user/u01", complaints=True) as page:
        page.get_by_label("Key").fill("mmrec_wrong")
        page.get_by_label("Key").press("Enter")
        page.get_by_role("alert").get_by_text("an unknown one").wait_for()
        page.get_by_label("Key").fill(studio.key)
        page.get_by_label("Key").press("Enter")
        see_pictures(page, "Recommendations")
        assert page.evaluate("localStorage.length") == 0, "the key is kept for this tab alone"
        page.get_by_role("button", name="Sign out").click()
        page.get_by_role("heading", name="Sign in").wait_for()
        assert page.evaluate("sessionStorage.length") == 0


def test_on_a_phone_nothing_scrolls_sideways_and_the_theme_is_dark(studio: Studio) -> None:
    with opened(
        studio, studio.open_url, "", viewport=PHONE, has_touch=True, color_scheme="dark", reduced_motion="reduce"
    ) as page:
        for path, label in (("user/u01", "Recommendations"), ("search?items=p04", "Found"), ("map", "Posts in view")):
            page.goto(f"{studio.open_url}/#/{path}")
            cards(page, label)
            studio.shoot(page, f"phone-{path.split('/')[0].split('?')[0]}")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        for path, text in (("post", "Nothing to look at yet"), ("health", "Latency"), ("user", "Most active")):
            page.goto(f"{studio.open_url}/#/{path}")
            page.get_by_text(text).first.wait_for()
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.get_by_label("Switch between light and dark").click()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark
