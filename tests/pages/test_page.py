"""The frame of every page: one file that fetches nothing, in which every value is text."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import jinja2
import pytest

from pipeline import pages
from pipeline.pages import svg
from pipeline.pages.page import FRAME, Fact, Heading, TableRow, render_page
from pipeline.pages.svg import Drawing
from tests.pages.parsing import ParsedPage

ODD = "<script>alert(1)</script> & \"quotes\" 'more' </style> \x1b[31mred\x00 ${x} {{y}} --> ünï"
SHOWN = ODD.replace("\x1b", "\ufffd").replace("\x00", "\ufffd")
TEMPLATES = sorted(Path(pages.__file__).parents[1].rglob("templates/*.html"))
PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="


def render_macro(call: str, **values) -> ParsedPage:
    """The part of a page that a call of a macro gives."""
    loader = jinja2.FileSystemLoader(FRAME.parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined
    )
    text = f'{{% import "macros.html" as macros %}}{call}'
    return ParsedPage(environment.from_string(text).render(**values))


def test_policy_allows_the_one_style_and_the_one_script_and_nothing_else(tmp_path):
    style = tmp_path / "own.css"
    style.write_text("p { color: red; }")
    found = ParsedPage(render_page(FRAME, title="x", styles=[style]))
    [policy] = [a["content"] for t, a in found.tags if a.get("http-equiv")]
    parts = dict(part.split(" ", 1) for part in policy.split("; "))
    for name in ("style", "script"):
        [text] = [data for tag, data in found.texts if tag == name]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert parts.pop(f"{name}-src") == f"'sha256-{digest}'"
    assert parts.pop("img-src") == "data:"
    assert parts == {"default-src": "'none'", "base-uri": "'none'", "form-action": "'none'"}


def test_page_has_a_language_a_title_and_both_colour_schemes():
    found = ParsedPage(render_page(FRAME, title=ODD))
    assert found.tags[0] == ("html", {"lang": "en"})
    assert [data for tag, data in found.texts if tag == "title"] == [SHOWN]
    assert found.words == SHOWN, "the title is also the heading"
    metas = {a.get("name"): a["content"] for t, a in found.tags if t == "meta" and "content" in a}
    assert metas["color-scheme"] == "light dark" and "width=device-width" in metas["viewport"]


def test_page_gives_equal_bytes_and_no_control_characters():
    text = render_page(FRAME, title=ODD)
    assert text == render_page(FRAME, title=ODD)
    text.encode()
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)
    assert render_page(FRAME, title="\ud800\uffff").count("\ufffd\ufffd") == 2


def test_template_without_its_values_is_refused(tmp_path):
    template = tmp_path / "own.html"
    template.write_text('{% extends "page.html" %}{% block main %}{{ mark }}{% endblock %}')
    assert ODD not in render_page(template, title="x", mark=ODD)
    with pytest.raises(jinja2.UndefinedError, match="'mark' is undefined"):
        render_page(template, title="x")


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.name)
def test_templates_quote_attributes_and_let_only_our_own_files_through(file):
    text = file.read_text()
    assert not re.search(r"=\s*\{\{", text), "an attribute without quotes is not protected"
    assert not re.search(r"\sstyle=|\son[a-z]+=", text), "the policy forbids them"
    unescaped = re.findall(r"\{\{\s*(\w+)\s*\|\s*safe", text)
    assert unescaped == (["style", "script"] if file.name == "page.html" else [])
    assert text.count("safe") == len(unescaped) and "autoescape" not in text


def test_macros_show_their_values_as_text():
    found = render_macro(
        "{{ macros.fact_boxes(facts) }}", facts=[Fact("n", "7"), Fact("a", ODD, "b")]
    )
    assert found.words == f"n 7 a {' '.join(ODD.split())} b"
    found = render_macro("{{ macros.definition_list(d) }}", d={"items": "x", ODD: ODD})
    assert [tag for tag, _ in found.tags] == ["dl", "dt", "dd", "dt", "dd"]
    found = render_macro("{{ macros.plain_table(d) }}", d={ODD: [ODD]})
    assert [tag for tag, _ in found.tags] == ["table", "tbody", "tr", "th", "td"]
    call = "{% call macros.section(t, t) %}{{ t }}{% endcall %}"
    found = render_macro(call, t=ODD)
    assert [tag for tag, _ in found.tags] == ["section", "h2", "p"]
    assert found.words.count("alert(1)") == 3


def test_sortable_table_has_a_button_in_each_heading_and_rows_that_the_keyboard_reaches():
    headings, rows = [Heading("a"), Heading(ODD, "all of b")], [TableRow(["1", ODD], "k", "best")]
    found = render_macro("{{ macros.sortable_table('t', h, r) }}", h=headings, r=rows)
    tags = [tag for tag, _ in found.tags]
    assert tags == ["div", "table", "thead", "tr", *["th", "button"] * 2, "tbody", "tr", "td", "td"]
    region, row = found.tags[0][1], found.tags[9][1]
    assert region == {"class": "scroll", "tabindex": "0", "role": "region", "aria-label": "t"}
    assert row == {"class": "best", "data-item": "k", "tabindex": "0"}
    assert [a["title"] for tag, a in found.tags if tag == "button"] == ["a", "all of b"]


def test_drawing_is_inserted_as_it_is():
    drawing = Drawing((9, 9), "t", "d", svg.text((1, 1), ODD, "tick"))
    found = render_macro("{% call macros.scrollable('x') %}{{ d }}{% endcall %}", d=drawing)
    assert [tag for tag, _ in found.tags] == ["div", "svg", "desc", "text"]
    assert found.words == " ".join(ODD.split())


# In a browser.


def open_with(browser, file: Path, content: str) -> None:
    """Open a page that has ``content`` before its script."""
    file.write_text(render_page(FRAME, title="x").replace("<script>", f"{content}<script>"))
    browser.open(file)


def test_browser_notices_a_page_that_fetches_or_complains(browser, tmp_path):
    """must notice, or the laws about requests and complaints would prove nothing"""
    file = tmp_path / "page.html"
    image = '<img src="http://127.0.0.1:9/x.png">'
    file.write_text(f"<title>x</title>{image}<script>console.error('oh')</script>")
    browser.open(file)
    assert browser.requests() == [file.as_uri(), "http://127.0.0.1:9/x.png"]
    assert any("oh" in line for line in browser.complaints())


@pytest.mark.parametrize(
    "content",
    [
        '<img src="http://127.0.0.1:9/x.png">',
        "<script>document.body.className = 'ran'</script>",
        '<p onclick="x()" id="p" style="color: red">x</p>',
    ],
)
def test_browser_refuses_what_the_policy_does_not_allow(browser, tmp_path, content):
    open_with(browser, tmp_path / "page.html", content)
    complaints = browser.complaints()
    assert complaints and all("Content Security Policy" in line for line in complaints)
    assert browser.evaluate("document.body.className") == ""
    assert browser.evaluate("typeof sortBy") == "function", "the page's own script has run"


def test_image_inside_the_page_is_shown(browser, tmp_path):
    open_with(browser, tmp_path / "page.html", f'<img src="{PIXEL}" alt="a pixel">')
    assert browser.complaints() == []
    assert browser.evaluate("document.querySelector('img').naturalWidth") == 1
