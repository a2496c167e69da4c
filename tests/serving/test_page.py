"""The page of the service in a browser."""

from __future__ import annotations

import base64
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.services.browser import Browser
from tests.serving.service import Service, draw_image, encode, wait_for

DROP = """(() => {
  const data = new DataTransfer();
  const bytes = Uint8Array.from(atob(%r), (letter) => letter.charCodeAt(0));
  data.items.add(new File([bytes], "image.png", { type: "image/png" }));
  const target = document.querySelector("#drop");
  target.dispatchEvent(new DragEvent(%r, { dataTransfer: data, bubbles: true, cancelable: true }));
  return target.className;
})()"""


@pytest.fixture
def page(browser: Browser, service: Service) -> Browser:
    browser.open(service.url)
    wait_for(lambda: "after task 3" in text_of(browser, "#model"))
    return browser


def text_of(page: Browser, selector: str) -> str:
    return page.evaluate(f"document.querySelector({selector!r}).textContent")


def rows(page: Browser) -> list[list[str]]:
    return page.evaluate(
        "[...document.querySelectorAll('#rows tr')].map(r => [...r.cells].map(c => c.textContent))"
    )


def choose(page: Browser, folder: Path, data: bytes) -> None:
    file = folder / f"{len(list(folder.iterdir()))}.png"
    file.write_bytes(data)
    page.press("#file", str(file))
    wait_for(lambda: "Classifying" not in text_of(page, "#status") != "")


def best(service: Service, data: bytes) -> list[list[str]]:
    """The rows that the page must show."""
    answer = service.predict(data).json
    return [
        [one["class"], f"{100 * one['probability']:.1f} %", str(one["task"])]
        for one in answer["top"]
    ]


def test_chosen_image_shows_its_classes_and_asks_only_this_service(page, service, tmp_path):
    data = encode(draw_image(1), "PNG")
    choose(page, tmp_path, data)
    assert rows(page) == best(service, data)
    assert text_of(page, "#status").startswith(rows(page)[0][0])
    assert page.evaluate("document.querySelector('#preview').naturalWidth") == 40
    assert page.complaints() == []
    hosts = {urlsplit(url.removeprefix("blob:")).netloc for url in page.requests()}
    assert hosts == {urlsplit(service.url).netloc}


def test_dropped_image_shows_its_classes(page, service):
    data = encode(draw_image(2), "PNG")
    text = base64.b64encode(data).decode()
    assert page.evaluate(DROP % (text, "dragover")) == "over"
    assert page.evaluate(DROP % (text, "drop")) == ""
    wait_for(lambda: rows(page) == best(service, data))


def test_refusal_is_shown_and_hides_the_earlier_result(page, tmp_path):
    choose(page, tmp_path, encode(draw_image(1), "PNG"))
    choose(page, tmp_path, b"<b>no image</b>")
    wait_for(lambda: "not an image of a known format" in text_of(page, "#status"))
    assert page.evaluate("document.querySelector('#result').hidden")


def test_result_of_a_hostile_class_name_is_text(page):
    """must hold for every value of an answer"""
    page.evaluate(
        "show(new Blob([]), {run: '<img src=x>', stage: 1, "
        "top: [{class: '<b>x</b>', probability: 0.5, task: 1}]})"
    )
    assert rows(page) == [["<b>x</b>", "50.0 %", "1"]]
    assert page.evaluate("document.querySelectorAll('b, img[src=x]').length") == 0


def test_screen_reader_hears_names_and_the_result(page, tmp_path):
    assert page.accessible_name("#file").startswith("Drop an image here")
    assert page.evaluate("document.querySelector('#status').getAttribute('aria-live')") == "polite"
    choose(page, tmp_path, encode(draw_image(1), "PNG"))
    assert page.accessible_name("#preview") == "The chosen image"
    assert page.accessible_name("#result") == "Most probable classes"
