"""The text for each class name: its spelling, and the templates of its prompts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from pipeline.settings_file import Section


def _check_template(template: str) -> str:
    if template.count("{}") != 1:
        raise ValueError(f"{template!r} needs exactly one '{{}}'")
    return template


# The prompts of a class name; training uses the first one.
Templates = Annotated[list[Annotated[str, AfterValidator(_check_template)]], Field(min_length=1)]


class TextConfig(Section):
    """The text for each class name."""

    names: Literal["spaced", "raw"] = "spaced"  # 'great white shark' or 'great_white_shark'
    # Training uses the first one. A list of lists has those of each index of data.index.
    templates: Templates | Annotated[list[Templates], Field(min_length=1)] = ["a photo of a {}."]
    ensemble: bool = False  # fixed anchors in tests: mean over all templates

    @property
    def template_lists(self) -> list[list[str]]:
        """The templates of each index of ``data.index``, or one list for all of them."""
        shared = [each for each in self.templates if isinstance(each, str)]
        return [each for each in self.templates if not isinstance(each, str)] or [shared]

    def templates_of(self, group: int) -> list[str]:
        """The templates of the index at position ``group`` of ``data.index``."""
        lists = self.template_lists
        return lists[group] if len(lists) > 1 else lists[0]
