"""A jinja2 template rendered to one self-contained page, and the values that its macros show."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

_FOLDER = Path(__file__).parent
FRAME = _FOLDER / "templates/page.html"  # the template that those of all pages extend

# Not allowed in HTML. The output of a program, shown as the reason of a failure, may have them.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Fact:
    """A figure that is shown large, with its name above it and a detail below it."""

    name: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Heading:
    """The heading of a table's column; ``full_name`` is its tooltip."""

    name: str
    full_name: str = ""


@dataclass(frozen=True)
class TableRow:
    """One cell for each heading; ``key`` joins the row with the items of the page's charts."""

    cells: Sequence[str]
    key: str
    kind: str = ""  # CSS classes


def render_page(template: Path, *, title: str, styles: Sequence[Path] = (), **values: Any) -> str:
    """The page that the file ``template`` gives with ``values``; equal bytes for equal values.

    The page fetches nothing and runs nothing but ``page.js``: its Content-Security-Policy names
    the hashes of its one script and its one style, which is ``page.css`` and then the files
    ``styles``. Control characters are replaced, wherever they are. The template may extend
    ``page.html``, and import macros from ``macros.html`` and from the files beside itself.

    Raises:
        jinja2.UndefinedError: the template needs a value that is not given.
    """
    style = "".join(file.read_text("utf-8") for file in (_FOLDER / "page.css", *styles))
    script = (_FOLDER / "page.js").read_text("utf-8")
    policy = {
        "default-src": "'none'",
        "img-src": "data:",  # images that are part of the page itself
        "style-src": _hash(style),
        "script-src": _hash(script),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    text = (
        _environment(template.parent)
        .get_template(template.name)
        .render(
            **values,
            title=title,
            policy="; ".join(f"{kind} {source}" for kind, source in policy.items()),
            style=style,
            script=script,
        )
    )
    return _CONTROL.sub("\ufffd", text)


@cache
def _environment(folder: Path) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, FRAME.parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _hash(text: str) -> str:
    """The name that a policy has for an inline style or script."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
