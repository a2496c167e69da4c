"""The images in a tree of files: ``<split>/<class>/*``, or ``<class>/*`` without splits.

Folders and archives share this module. Every file is either an image of the listing, or counted
with the reason why it is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipeline import storage
from pipeline.data.prepare.source_images import LeftOut, Listing, SourceImage, printable
from pipeline.data.prepare.splits import NOT_CHOSEN, SplitChoice
from pipeline.data.prepare.video_file import is_video_file
from pipeline.errors import DataError

IMAGE_SUFFIXES = frozenset(
    "avif avifs bmp dib gif heic heif hif jfif jpe jpeg jpg mpo "
    "pbm pgm png pnm ppm tif tiff webp".split()
)
FRAMES = "extract one frame of each, as an image with the name of the video"
LAYOUT = "train/<class>/* and test/<class>/*"

_VIDEO_SUFFIXES = frozenset("avi m4v mkv mov mp4 mpeg mpg webm wmv".split())
_SYSTEM_NAMES = {"__MACOSX", "Thumbs.db", "desktop.ini"}


class NoImageError(DataError):
    """A source has no image of the expected form."""


@dataclass(frozen=True)
class _File:
    """One file: the parts of its path, and its place for the source."""

    parts: tuple[str, ...]
    location: str


def select_images(
    files: Iterable[tuple[str, str]], url: str, choice: SplitChoice, left_out: LeftOut
) -> Listing:
    """The images among ``files``, pairs of path and location; the others go to ``left_out``.

    Raises:
        NoImageError: no image has the expected form.
        DataError: a path leaves the tree.
    """
    place = storage.redact(url)
    found = [_File(_checked_parts(path, place), location) for path, location in files]
    found = [file for file in found if not _is_hidden(file, left_out)]
    depths = [_split_depth(file, choice) for file in found]
    if any(depth is not None for depth in depths):
        return _in_splits(list(zip(found, depths, strict=True)), place, choice, left_out)
    if choice.test_fraction and choice.chosen is None:
        return _without_splits(found, place, choice, left_out)
    for file in found:
        _count_stray(file, left_out)
    flat = _class_folders(found)
    remedy = "rearrange it, or list its images in a CSV with path, label and split"
    if flat:
        remedy = (
            f"it looks like <class>/* with {len(flat):,} classes: add --test-fraction 0.2 to draw "
            f"a test split, or {remedy}"
        )
    raise NoImageError(
        f"{place}: contains no image of the form {LAYOUT}{_reasons(left_out)}; {remedy}"
    )


def keep_images(
    files: Iterable[tuple[str, str]], left_out: LeftOut, *, videos: bool = False
) -> Iterator[tuple[str, str]]:
    """The images among ``files``, pairs of path and location, in any form of tree.

    ``videos`` are kept too, of the form that :mod:`~pipeline.data.prepare.video_file` reads.
    """
    for path, location in files:
        file = _File(PurePosixPath(path).parts, location)
        if _is_hidden(file, left_out):
            continue
        if (videos and is_video_file(path)) or _is_image(file, left_out):
            yield path, location


def has_image(files: Iterable[tuple[str, str]]) -> bool:
    """Whether one of ``files``, pairs of path and location, has the suffix of an image."""
    return any(_has_image_suffix(_File(PurePosixPath(path).parts, "")) for path, _ in files)


def is_video(path: str) -> bool:
    """Whether the suffix is that of a video."""
    return PurePosixPath(path).suffix.lower().removeprefix(".") in _VIDEO_SUFFIXES


def _in_splits(
    files: Sequence[tuple[_File, int | None]], place: str, choice: SplitChoice, left_out: LeftOut
) -> Listing:
    kept: list[tuple[str, str, str, _File]] = []  # split of the source, folder, path, file
    seen: Counter[str] = Counter()
    roots = set()
    for file, depth in files:
        if depth is None:
            left_out.add("it is not in a folder of a split", "/".join(file.parts))
        elif len(file.parts) < depth + 3:
            left_out.add("it is not in a class folder", "/".join(file.parts))
        else:
            split, folder, *inner = file.parts[depth:]
            seen[f"{split}/{folder}"] += 1
            if _is_image(file, left_out):
                roots.add("/".join(file.parts[:depth]))
                kept.append((split, folder, "/".join(inner), file))
    if len(roots) > 1:
        raise DataError(
            f"{place}: has several folders with splits: {', '.join(sorted(map(repr, roots)))}; "
            "prepare them one by one, with one of them as --source"
        )
    assigned = choice.assign({split for split, *_ in kept}, place)
    choice.check_fraction(assigned.values(), place)
    images = []
    for split, folder, path, file in kept:
        if split not in assigned:
            left_out.add(NOT_CHOSEN, "/".join(file.parts))
            continue
        final = choice.split_of(assigned[split], folder, path)
        images.append(SourceImage(final, folder, path, file.location))
    _refuse_nothing(images, place, left_out)
    notes = [f"{name} became {split}" for name, split in assigned.items() if name.lower() != split]
    notes += _other_splits([file for file, depth in files if depth is None], images)
    return Listing(images, left_out, notes=(*notes, *_emptied(seen, kept)))


def _without_splits(
    files: Sequence[_File], place: str, choice: SplitChoice, left_out: LeftOut
) -> Listing:
    """``<class>/*``, below any number of folders that have a single folder and nothing else."""
    tops = [file.parts[:-1] for file in files if _has_image_suffix(file)]
    depth = 0
    while len({parts[depth : depth + 1] for parts in tops}) == 1 and all(
        len(parts) > depth + 1 for parts in tops
    ):
        depth += 1
    images, seen = [], Counter[str]()
    for file in files:
        if len(file.parts) < depth + 2:
            left_out.add("it is not in a class folder", "/".join(file.parts))
            continue
        folder, *rest = file.parts[depth:]
        seen[folder] += 1
        if _is_image(file, left_out):
            path = "/".join(rest)
            split = choice.drawn_split(folder, path)
            images.append(SourceImage(split, folder, path, file.location))
    _refuse_nothing(images, place, left_out)
    kept = [("", image.folder) for image in images]
    return Listing(images, left_out, notes=_emptied(seen, kept))


def _checked_parts(path: str, place: str) -> tuple[str, ...]:
    parts = PurePosixPath(path).parts
    if path.startswith("/") or ".." in parts or not parts:
        raise DataError(
            f"{place}: the path of member {printable(path)!r} leaves the archive; remove it"
        )
    return parts


def _is_hidden(file: _File, left_out: LeftOut) -> bool:
    if any(part.startswith(".") or part in _SYSTEM_NAMES for part in file.parts):
        left_out.add("it is a hidden file or one of the operating system", "/".join(file.parts))
        return True
    return False


def _split_depth(file: _File, choice: SplitChoice) -> int | None:
    """The position of the split in the path; None if it has no folder of a split."""
    folders = file.parts[:-1]
    return next(
        (d for d in (0, 1) if d < len(folders) and folders[d].lower() in choice.known), None
    )


def _suffix(file: _File) -> str:
    return PurePosixPath(file.parts[-1]).suffix.lower().removeprefix(".")


def _has_image_suffix(file: _File) -> bool:
    return _suffix(file) in IMAGE_SUFFIXES


def _is_image(file: _File, left_out: LeftOut) -> bool:
    if _has_image_suffix(file):
        return True
    suffix = _suffix(file)
    reason = f"suffix .{printable(suffix)} is not one of an image" if suffix else "it has no suffix"
    if suffix in _VIDEO_SUFFIXES:
        reason = f"it is a video: {FRAMES}"
    left_out.add(reason, "/".join(file.parts))
    return False


def _count_stray(file: _File, left_out: LeftOut) -> None:
    if _is_image(file, left_out):
        left_out.add("it is not in a folder of a split", "/".join(file.parts))


def _class_folders(files: Iterable[_File]) -> set[str]:
    return {file.parts[-2] for file in files if len(file.parts) > 1 and _has_image_suffix(file)}


def _refuse_nothing(images: Sequence[SourceImage], place: str, left_out: LeftOut) -> None:
    if not images:
        raise NoImageError(
            f"{place}: contains no image of the form {LAYOUT}{_reasons(left_out)}; "
            "rearrange it, or list its images in a CSV with path, label and split"
        )


def _reasons(left_out: LeftOut) -> str:
    return f" (left out {len(left_out):,} files: {left_out})" if len(left_out) else ""


def _other_splits(files: Iterable[_File], images: Iterable[SourceImage]) -> list[str]:
    """A sentence for each folder that looks like a split with another name, such as ``eval``."""
    classes = {image.folder for image in images}
    names = {f.parts[0] for f in files if len(f.parts) > 2 and f.parts[1] in classes}
    return [
        f"folder {printable(name)} has the same class folders, and no name of a split; to read it, "
        f"choose with --splits, for example --splits train=train,test={printable(name)}"
        for name in sorted(names)
    ]


def _emptied(seen: Counter[str], kept: Iterable[Sequence[object]]) -> tuple[str, ...]:
    """A sentence for each class folder with files, none of which is an image that is read."""
    full = {f"{split}/{folder}".lstrip("/") for split, folder, *_ in kept}
    return tuple(
        f"class folder {printable(folder)}: none of its {count:,} files is read"
        for folder, count in seen.items()
        if folder not in full
    )
