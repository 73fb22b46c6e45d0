"""The page to try the worker, in a real browser without a window."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from tests.fakes import FakeEngine
from tests.server.servers import circle, served
from worker.core.contract import Done, Media, Piece
from worker.core.errors import QueueFull

pytestmark = [pytest.mark.network, pytest.mark.slow]


class Page:
    """The page as somebody who uses it sees it."""

    def __init__(self, browser: webdriver.Chrome, address: str) -> None:
        self.browser = browser
        self.address = address
        browser.execute_cdp_cmd(
            "Browser.grantPermissions",
            {"origin": address, "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]},
        )
        browser.get(f"{address}/playground")
        self.until(lambda: self["state"].text not in ("", "asking…", "loading"))

    def __getitem__(self, name: str) -> WebElement:
        return self.browser.find_element(By.ID, name)

    def all(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def until(self, holds: Callable[[], Any]) -> None:
        WebDriverWait(self.browser, 20, 0.02).until(lambda _: holds())

    def ask(self, question: str) -> None:
        """By the keyboard alone: the question has the focus."""
        self.browser.switch_to.active_element.send_keys(question + Keys.ENTER)

    @property
    def answers(self) -> list[str]:
        return [one.text for one in self.all("article.assistant .words")]

    def answered(self, count: int) -> None:
        self.until(lambda: len(self.all("article.assistant .facts")) == count)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    (tmp_path / "circle.jpg").write_bytes(circle())
    return tmp_path / "circle.jpg"


class Waits(FakeEngine):
    """Says a word, and the rest when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    async def generate(self, request: Any, media: Any, deadline: Any, *_: Any) -> Any:
        self.asked.append(request)
        try:
            yield Piece(text="A")
            while not self.go_on.is_set():
                await asyncio.sleep(0.01)
            yield Piece(text=" cat.")
            yield Done(reasons=("stop",), usage=self.usage)
        finally:
            self.num_closed += 1


def test_a_picture_is_shown_asked_about_and_the_answer_is_seen_as_it_comes(
    browser: webdriver.Chrome, picture: Path
) -> None:
    engine = Waits()
    with served(engine) as address:
        page = Page(browser, address)
        page["files"].send_keys(str(picture))
        page.until(lambda: page.all("#attached img"))
        page.ask("What is it?")
        page.until(lambda: page.answers == ["A"])
        assert page["send"].text == "Stop"
        assert not page.all(".facts")
        engine.go_on.set()
        page.answered(1)
        assert page.answers == ["A cat."]
        assert "20 tokens in (16 of images) · 3 out · first token after" in page.all(".facts")[0].text
        assert page.all("article.user img")[0].get_property("naturalWidth") == 160
        page.ask("And now?")
        page.answered(2)
        assert browser.get_log("browser") == []
    first, second = engine.asked
    assert [type(part).__name__ for part in first.messages[0].parts] == ["Media", "Text"]
    assert [message.role for message in second.messages] == ["user", "assistant", "user"]
    assert isinstance(second.messages[0].parts[0], Media)


def test_an_error_is_shown_and_the_question_is_back(browser: webdriver.Chrome, picture: Path) -> None:
    engine = FakeEngine(pieces=[], error=QueueFull(detail="3 requests are unfinished"))
    with served(engine) as address:
        page = Page(browser, address)
        page["files"].send_keys(str(picture))
        page.until(lambda: page.all("#attached img"))
        page.ask("What is it?")
        page.until(lambda: "QUEUE_FULL" in page["error"].text)
        assert "3 requests are unfinished" in page["error"].text
        assert page["question"].get_property("value") == "What is it?"
        assert len(page.all("#attached img")) == 1
        assert not page.all("article")
        engine.error, engine.pieces = None, ["A cat."]
        page.ask("")
        page.answered(1)
        assert page["error"].text == ""


def test_the_key_is_asked_for_and_then_sent(browser: webdriver.Chrome) -> None:
    with served(FakeEngine(), API_KEY="secret") as address:
        page = Page(browser, address)
        assert "needs an API key" in page["state"].text
        page.ask("Hello")
        page.until(lambda: "KEY_INVALID" in page["error"].text)
        browser.find_element(By.TAG_NAME, "summary").click()
        page["key"].send_keys("secret")
        page["question"].click()
        page.until(lambda: "tiny-qwen3-vl" in page["state"].text)
        page.ask("")
        page.answered(1)
        browser.execute_script("sessionStorage.clear()")


def test_escape_stops_the_answer_and_the_engine(browser: webdriver.Chrome) -> None:
    engine = Waits()
    with served(engine) as address:
        page = Page(browser, address)
        page.ask("Hello")
        page.until(lambda: page.answers == ["A"])
        browser.switch_to.active_element.send_keys(Keys.ESCAPE)
        page.answered(1)
        page.until(lambda: engine.num_closed == 1)
        assert "stopped here" in page.all(".facts")[0].text
        page["anew"].click()
        assert not page.all("article")


def test_a_conversation_that_is_begun_anew_has_nothing_of_an_answer_that_was_on_its_way(
    browser: webdriver.Chrome,
) -> None:
    engine = Waits()
    with served(engine) as address:
        page = Page(browser, address)
        page.ask("An old question")
        page.until(lambda: page.answers == ["A"])
        page["anew"].click()
        page.until(lambda: engine.num_closed == 1 and page["send"].text == "Ask")
        engine.go_on.set()
        page.ask("A fresh question")
        page.answered(1)
    assert [message.role for message in engine.asked[-1].messages] == ["user"]


PUT = """
const [kind, name] = arguments, moved = new DataTransfer();
moved.items.add(new File([new Uint8Array([1, 2, 3])], name, {type: kind}));
document.body.dispatchEvent(arguments[2] === "paste"
  ? new ClipboardEvent("paste", {clipboardData: moved, bubbles: true})
  : new DragEvent("drop", {dataTransfer: moved, bubbles: true, cancelable: true}));
"""


def test_pictures_and_clips_are_dropped_and_pasted_and_taken_away_again(browser: webdriver.Chrome) -> None:
    with served(FakeEngine()) as address:
        page = Page(browser, address)
        browser.execute_script(PUT, "image/png", "a.png", "paste")
        page.until(lambda: len(page.all("#attached img")) == 1)
        browser.execute_script(PUT, "video/mp4", "b.mp4", "drop")
        page.until(lambda: len(page.all("#attached video")) == 1)
        browser.execute_script(PUT, "text/plain", "c.txt", "drop")
        page.until(lambda: "c.txt is neither an image nor a video" in page["error"].text)
        page.all("#attached button[aria-label='Remove a.png']")[0].click()
        assert (len(page.all("#attached img")), len(page.all("#attached video"))) == (0, 1)


def copied(page: Page, form: str) -> str:
    page.all(f"[data-copy={form}]")[0].click()
    page.until(lambda: "copied" in page["copied"].text)
    text = page.browser.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    page.browser.execute_script("document.getElementById('copied').textContent = ''")
    return str(text)


def test_the_request_is_copied_in_forms_that_work(browser: webdriver.Chrome, tmp_path: Path) -> None:
    engine = FakeEngine()
    with served(engine) as address:
        page = Page(browser, address)
        browser.execute_script(PUT, "image/png", "a.png", "paste")
        page.until(lambda: page.all("#attached img"))
        browser.find_element(By.TAG_NAME, "summary").click()
        page["question"].send_keys("It's \"what\"? \\ ''' 你好")
        (tmp_path / "ask.sh").write_text(copied(page, "curl"), encoding="utf-8")
        (tmp_path / "ask.py").write_text(copied(page, "python"), encoding="utf-8")
        job = json.loads(copied(page, "job"))
        page["question"].click()
        page.ask("")
        page.answered(1)
        by_curl = subprocess.run(["sh", tmp_path / "ask.sh"], capture_output=True, text=True, timeout=60, check=True)
        by_python = subprocess.run(
            [sys.executable, tmp_path / "ask.py"], capture_output=True, text=True, timeout=60, check=True
        )
    assert json.loads(by_curl.stdout)["choices"][0]["message"]["content"] == "A cat."
    assert by_python.stdout == "A cat.\n"
    on_page, curl, python = (request.messages for request in engine.asked)
    assert on_page == curl == python
    assert job["input"]["messages"][0]["content"][1]["text"] == "It's \"what\"? \\ ''' 你好"
    assert job["input"]["temperature"] == 0


def test_it_fits_a_phone_and_a_dark_room(browser: webdriver.Chrome, picture: Path) -> None:
    with served(FakeEngine(pieces=["word " * 200])) as address:
        try:
            browser.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride",
                {"width": 340, "height": 640, "deviceScaleFactor": 2, "mobile": True},
            )
            dark = [{"name": "prefers-color-scheme", "value": "dark"}]
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": dark})
            page = Page(browser, address)
            page["files"].send_keys(str(picture))
            page.until(lambda: page.all("#attached img"))
            page.ask("What is it?")
            page.answered(1)
            browser.find_element(By.TAG_NAME, "summary").click()
            width, ground = browser.execute_script(
                "return [document.documentElement.scrollWidth, getComputedStyle(document.body).backgroundColor]"
            )
            assert width <= 340
            assert ground == "rgb(22, 22, 21)"
            assert all(page[name].rect["height"] >= 44 for name in ("attach", "send", "question"))
        finally:
            browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


RECOGNIZE = """
const [address, done] = arguments, form = new FormData();
form.append("image", new Blob([new Uint8Array([1, 2, 3])], {type: "image/png"}), "x.png");
form.append("prompt", "What is it?");
fetch(address + "/v1/image/recognize", {method: "POST", body: form, headers: {"X-API-Key": "k"}})
  .then((answer) => answer.json().then((said) => done([answer.status, said])), (error) => done([0, String(error)]));
"""


@pytest.mark.parametrize(("origins", "status"), [("*", 200), ("https://elsewhere.test", 0)])
def test_a_page_of_another_origin_asks_where_it_may(browser: webdriver.Chrome, origins: str, status: int) -> None:
    with served(FakeEngine()) as page, served(FakeEngine(), API_KEY="k", CORS_ORIGINS=origins) as other:
        browser.get(f"{page}/health")
        got, said = browser.execute_async_script(RECOGNIZE, other)
        assert got == status, said
        if status:
            assert said == {"status": "success", "result": "A cat."}


def test_it_may_be_left_out_and_lets_nothing_else_in() -> None:
    with served(FakeEngine(), PLAYGROUND="0") as address:
        assert requests.get(f"{address}/playground", timeout=10).status_code == 404
    with served(FakeEngine(), API_KEY="k") as address:
        page = requests.get(f"{address}/playground", timeout=10)
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "src=" not in page.text
    assert "http://" not in page.text
    assert "https://" not in page.text


def test_the_tiny_model_says_what_is_in_the_picture(browser: webdriver.Chrome, picture: Path, real: str) -> None:
    page = Page(browser, real)
    browser.find_element(By.TAG_NAME, "summary").click()
    page["key"].send_keys("k1")
    page["question"].click()
    page["files"].send_keys(str(picture))
    page.until(lambda: page.all("#attached img"))
    page.ask("What is in the picture?")
    page.answered(1)
    assert "red circle" in page.answers[0]
