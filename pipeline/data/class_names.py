"""Class names that a text tower can tell apart."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Sequence


def find_bad_class_name(names: Sequence[str]) -> str | None:
    """A sentence about the first class whose name is blank or equal to another, or None.

    Names are equal if the tokenizer of CLIP reads the same text: it ignores case and the number of
    spaces. Equal names would give equal anchors, and one of the two classes is never predicted.
    """
    known: dict[str, str] = {}
    for name in names:
        text = " ".join(html.unescape(unicodedata.normalize("NFC", name)).lower().split())
        if not text or not text.isprintable():
            return f"the class name {name!r} is blank or has characters that cannot be printed"
        if text in known:
            return f"two classes have the same name for the text tower: {known[text]!r}, {name!r}"
        known[text] = name
    return None
