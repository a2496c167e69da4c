"""The images of a source as it lists them, with an account of everything that it leaves out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from pipeline import storage
from pipeline.data.decoding import SampleError
from pipeline.data.membership import Membership
from pipeline.data.prepare.splits import SplitChoice
from pipeline.errors import DataError, PipelineError
from pipeline.text import printable as printable

MAX_FILE_BYTES = 256 << 20  # of one image file

_EXAMPLES = 3


@dataclass(frozen=True, order=True)
class SourceImage:
    """One image of a source: ``path`` is unique within its split and class folder."""

    split: str
    folder: str
    path: str
    location: str = ""  # the place of its bytes, for its source
    is_video: bool = False  # the image is the middle frame of the file

    def __str__(self) -> str:
        return printable(f"{self.split}/{self.folder}/{self.path}")


@dataclass
class LeftOut:
    """The files that are not read: their number for each reason, and the first few of them."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, path: str) -> None:
        """Count one file."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        if self.counts[reason] <= _EXAMPLES:
            self.examples.setdefault(reason, []).append(printable(path))

    def __len__(self) -> int:
        return sum(self.counts.values())

    def __str__(self) -> str:
        """One line: the reasons with number and first example, most frequent first."""
        reasons = sorted(self.counts, key=lambda reason: -self.counts[reason])
        return "; ".join(f"{r}: {self.counts[r]:,} ({self.examples[r][0]} …)" for r in reasons)


@dataclass(frozen=True)
class Listing:
    """Everything that a source contains.

    ``class_order`` are the class folders in the order that the source itself gives them, if any;
    ``class_names`` are readable names by folder, if they are known, and ``membership`` the split of
    a benchmark. ``notes`` are sentences for the user.
    """

    images: Sequence[SourceImage]
    left_out: LeftOut = field(default_factory=LeftOut)
    class_order: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    class_names: Mapping[str, str] = field(default_factory=dict)
    membership: Membership | None = None


class ImageSource(Protocol):
    """A collection of labelled images."""

    def list_images(self, choice: SplitChoice) -> Listing:
        """Every image, in no particular order, with the split that ``choice`` gives it.

        Raises:
            PipelineError: the source cannot be read, or has another form than its name says.
        """

    def read(self, image: SourceImage) -> bytes:
        """The bytes of its image file.

        Raises:
            SampleError: this one file is damaged or missing.
            PipelineError: the source cannot be read.
        """


@contextmanager
def file_errors_named(url: str, remedy: str) -> Iterator[None]:
    """Turn any error of a library that reads the file at ``url`` into one sentence."""
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:  # on damaged files these libraries raise almost anything
        raise DataError(f"{storage.redact(url)}: {describe(error)}; {remedy}") from error


@contextmanager
def damage_named() -> Iterator[None]:
    """Turn any error of a library that reads one image into a :class:`SampleError`."""
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        raise SampleError(f"cannot be read ({describe(error)})") from error


def describe(error: BaseException) -> str:
    """An error of a library, on one line of at most 200 characters."""
    text = " ".join(storage.scrub(f"{type(error).__name__}: {error}").split()).rstrip(": ")
    return text if len(text) <= 200 else text[:200].rpartition(" ")[0] + " …"


def check_size(size: int) -> None:
    """Return if an image file may have ``size`` bytes.

    Raises:
        SampleError: it is too large.
    """
    if size > MAX_FILE_BYTES:
        raise SampleError(f"has {size:,} bytes; an image file may have {MAX_FILE_BYTES:,}")


def join_examples(examples: Sequence[str], count: int) -> str:
    """The first few of ``count`` names."""
    return ", ".join(examples) + (", …" if count > len(examples) else "")
