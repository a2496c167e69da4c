"""The elements and the words of a page, as a parser of HTML reads them."""

from __future__ import annotations

from collections import Counter
from html.parser import HTMLParser

_VOID = ("br", "img", "meta")


class ParsedPage(HTMLParser):
    """A page in which every element is closed; others are refused."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == [], "every element is closed"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self._open[-1], data))

    @property
    def words(self) -> str:
        """The text that a person reads."""
        hidden = ("script", "style", "title", "desc")
        shown = (data for tag, data in self.texts if tag not in hidden)
        return " ".join(" ".join(shown).split())

    def items(self, tag: str) -> Counter[str]:
        """The number of elements of that kind that each item has, by its key."""
        return Counter(a["data-item"] for t, a in self.tags if t == tag and "data-item" in a)
