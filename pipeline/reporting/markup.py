"""Elements of a page that cannot be left open and text that cannot be taken for one."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from xml.etree import ElementTree

Element = ElementTree.Element

# Characters that no page may hold, as they come with the last words of a program on a terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def element(
    name: str, attributes: Mapping[str, object] | None = None, *children: Element | str | None
) -> Element:
    """The element ``name`` with its children in order; text is text, whatever it holds.

    Attributes and children that are None are left out.
    """
    made = Element(name)
    for key, value in (attributes or {}).items():
        if value is not None:
            made.set(key, _CONTROL.sub("\ufffd", str(value)))
    for child in children:
        if isinstance(child, str):
            _append_text(made, _CONTROL.sub("\ufffd", child))
        elif child is not None:
            made.append(child)
    return made


def page(title: str, style: str, script: str, *content: Element) -> str:
    """A whole page in one file; its browser fetches nothing and runs nothing but ``script``."""
    allowed = {
        "default-src": "'none'",
        "style-src": _source(style),
        "script-src": _source(script),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    policy = "; ".join(f"{kind} {source}" for kind, source in allowed.items())
    head = element(
        "head",
        {},
        element("meta", {"charset": "utf-8"}),
        element("meta", {"http-equiv": "Content-Security-Policy", "content": policy}),
        element("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        element("meta", {"name": "color-scheme", "content": "light dark"}),
        element("title", {}, title),
        element("style", {}, style),
    )
    body = element("body", {}, *content, element("script", {}, script))
    root = element("html", {"lang": "en"}, head, body)
    return f"<!DOCTYPE html>\n{ElementTree.tostring(root, encoding='unicode', method='html')}\n"


def _append_text(made: Element, text: str) -> None:
    if len(made):
        made[-1].tail = (made[-1].tail or "") + text
    else:
        made.text = (made.text or "") + text


def _source(text: str) -> str:
    """How a policy names a style or a script that stands in the page itself."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
