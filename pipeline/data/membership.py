"""The benchmark and the split that a prepared data set holds, with a hash of its membership.

Two data sets of one benchmark are comparable only if each image is in the same split of both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Membership:
    """The split of a benchmark; ``sha256`` is that of :func:`hash_membership`."""

    benchmark: str
    split: str
    sha256: str

    @property
    def facts(self) -> dict[str, str]:
        """The same under names that stand alone, for tables."""
        return {
            "benchmark": self.benchmark,
            "benchmark_split": self.split,
            "membership_sha256": self.sha256,
        }


def hash_membership(images: Iterable[tuple[str, str, str]]) -> str:
    """A hash of the split, class folder and path of each image, in any order.

    It is the sha256 of the sorted lines ``<split> <folder>/<path>``. The names of the classes, the
    bytes of the images and their layout at the source do not matter.
    """
    lines = sorted(f"{split} {folder}/{path}\n" for split, folder, path in images)
    text = "".join(lines).encode(errors="surrogateescape")
    return hashlib.sha256(text).hexdigest()


def parse_membership(content: Any) -> Membership | None:
    """The value of ``membership`` in an index; None if the index has none.

    Raises:
        TypeError, ValueError: it has another form.
    """
    if content is None:
        return None
    membership = Membership(**content)
    if not all(isinstance(text, str) for text in asdict(membership).values()):
        raise ValueError("membership is not text")
    return membership
