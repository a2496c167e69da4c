"""From a source of images to a prepared data set: read, check, shrink, pack, store, index.

Several processes encode images; this one packs them in order and stores shards while it fills the
next ones. Meanwhile ``unfinished.json`` records the stored shards, so the same command can resume.
The index is written last, and then that file is removed.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Literal

import PIL

from pipeline import storage
from pipeline.data.index import INDEX_NAME, SCHEMA, ShardIndex, format_index, parse_index
from pipeline.data.prepare.benchmark import BenchmarkChoice, list_images
from pipeline.data.prepare.checks import (
    find_warnings,
    first_image_notes,
    orientation_notes,
    refuse_disjoint,
    refuse_left_out,
)
from pipeline.data.prepare.encoding import Orientation, encode_rows
from pipeline.data.prepare.listing import Row, read_classes, sort_rows
from pipeline.data.prepare.parallel import Progress, no_progress
from pipeline.data.prepare.source_images import LeftOut
from pipeline.data.prepare.sources import open_source
from pipeline.data.prepare.splits import SPLITS, SplitChoice
from pipeline.data.prepare.target import UNFINISHED_NAME, find_old_files, remove_leftovers
from pipeline.data.prepare.writer import SEGMENT_BYTES, BuiltShard, Sample, build_shards
from pipeline.data.shard import Shard, format_shard, parse_shard
from pipeline.data.shard_check import sizes_by_name
from pipeline.errors import DataError, StorageError

log = logging.getLogger(__name__)

_RECORDED = {"apply": "applied", "ignore": "ignored"}  # orientations, in the index
_STORING = 2  # shards that are being stored while the next one is filled
# The state names all shards, so it is written when they are more by this part: in proportion to the
# shards, not to their square. A killed process loses at most this part of its work.
_RECORD_EVERY = 1 / 64


@dataclass(frozen=True)
class Recipe:
    """The settings of the shards."""

    shard_bytes: int = 64 << 20
    resize: int | None = None  # short side in pixels; smaller images keep their bytes
    on_bad_image: Literal["fail", "skip"] = "fail"
    orientation: Orientation = "apply"  # of images with an EXIF tag
    splits: SplitChoice = SplitChoice()
    strict: bool = False  # refuse a source with a file that would be left out


@dataclass(frozen=True)
class Outcome:
    """The result of ``write_shards``.

    ``skipped`` has a sentence for each unusable image that this attempt found; ``bad`` is the
    number of all, also of earlier attempts. ``left_out`` counts the files that are no images;
    ``notes`` and ``warnings`` are sentences.
    """

    index: ShardIndex
    left_out: LeftOut
    skipped: tuple[str, ...] = ()
    bad: int = 0
    resumed: int = 0  # shards that an earlier attempt stored
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass
class _Work:
    """The state of the work: the shards that are stored."""

    fingerprint: str
    shards: list[Shard] = field(default_factory=list)
    last_key: tuple[str, str] | None = None  # (split, key) of the last sample that is stored
    orientations: int = 0  # stored samples whose files had an EXIF orientation
    first_images: int = 0  # stored samples whose files had further images


def write_shards(
    source_url: str,
    out_url: str,
    recipe: Recipe,
    *,
    names_url: str | None = None,
    benchmark: BenchmarkChoice | None = None,
    overwrite: bool = False,
    jobs: int = 1,
    progress: Progress = no_progress,
) -> Outcome:
    """Write the images of ``source_url`` as shards and an index below ``out_url``.

    ``names_url`` is a JSON list of ``{"name", "folder"}``: readable class names, in the order of
    the index; ``benchmark`` takes them from the catalogue. ``jobs`` processes encode; ``progress``
    counts images. The stored bytes depend only on the source, the names and the recipe.

    Raises:
        PipelineError: the source or the target cannot be used.
    """
    index_url = storage.join(out_url, INDEX_NAME)
    with storage.giving_up_early():
        old_files = find_old_files(out_url, overwrite)
        source = open_source(source_url)
        listing = list_images(source, benchmark, recipe.splits, source_url)
    known = (listing.class_order, listing.class_names)
    names, folders = read_classes(names_url, listing.images, *known)
    refuse_disjoint(listing.images, storage.redact(source_url))
    if recipe.strict:
        refuse_left_out(listing, storage.redact(source_url))
    rows = sort_rows(listing.images, folders)
    work = _resume(out_url, _fingerprint(rows, recipe))
    resumed, done = len(work.shards), _rows_done(rows, work.last_key)
    with storage.giving_up_early():
        storage.remove(index_url)
        _record(out_url, work)  # from now on, the shards at the target are known to be unfinished
    skipped: list[str] = []
    results = encode_rows(
        source, rows[done:], resize=recipe.resize, jobs=jobs, orientation=recipe.orientation
    )
    samples = _usable(_counted(results, progress, done, len(rows)), recipe, skipped)
    numbers = {split: sum(s.split == split for s in work.shards) for split in SPLITS}
    built = build_shards(samples, shard_bytes=recipe.shard_bytes, numbers=numbers)
    _store_all(out_url, built, work)
    if not work.shards:
        raise _nothing_usable(source_url, len(rows), skipped)
    orientation = _RECORDED[recipe.orientation] if work.orientations else None
    content = format_index(names, folders, work.shards, orientation, listing.membership)
    index = parse_index(out_url, content)
    storage.write_atomically(index_url, content)
    remove_leftovers(out_url, index, old_files)
    return Outcome(
        index,
        listing.left_out,
        tuple(skipped),
        bad=len(rows) - sum(shard.samples for shard in index.shards),
        resumed=resumed,
        notes=(*listing.notes, *_notes(work, recipe)),
        warnings=find_warnings(index, listing),
    )


def _nothing_usable(source_url: str, count: int, skipped: Sequence[str]) -> DataError:
    first = f" (first: {skipped[0]})" if skipped else ""
    return DataError(
        f"{storage.redact(source_url)}: none of its {count:,} images can be used{first}; "
        "repair them"
    )


def _notes(work: _Work, recipe: Recipe) -> Iterator[str]:
    """Sentences about the stored images."""
    yield from orientation_notes(work.orientations, recipe.orientation)
    yield from first_image_notes(work.first_images)


def _fingerprint(rows: Sequence[Row], recipe: Recipe) -> str:
    """A hash of the work; an attempt resumes only work of the same hash."""
    settings = (recipe.shard_bytes, recipe.resize, recipe.on_bad_image, recipe.orientation)
    digest = hashlib.sha256(repr((SCHEMA, SEGMENT_BYTES, PIL.__version__, *settings)).encode())
    for row in rows:
        digest.update(ascii((row.image, row.label, row.key)).encode())
    return digest.hexdigest()


def _resume(out_url: str, fingerprint: str) -> _Work:
    """The shards that an earlier attempt at the same work has stored, if any."""
    url = storage.join(out_url, UNFINISHED_NAME)
    if not storage.exists(url):
        return _Work(fingerprint)
    try:
        content = json.loads(storage.read_text(url))
        shards = [replace(parse_shard(entry), folder=out_url) for entry in content["shards"]]
        if content["fingerprint"] != fingerprint:
            return _Work(fingerprint)
        sizes = sizes_by_name(out_url, shards)
        if any(sizes[shard.name] != shard.bytes for shard in shards):
            return _Work(fingerprint)
        last_key = None if content["last_key"] is None else tuple(content["last_key"])
        orientations, first_images = int(content["orientations"]), int(content["first_images"])
    except (ValueError, KeyError, TypeError, RecursionError, StorageError) as error:
        log.info("%s cannot be used (%s); starting again", storage.redact(url), error)
        return _Work(fingerprint)
    return _Work(fingerprint, shards, last_key, orientations, first_images)


def _rows_done(rows: Sequence[Row], last_key: tuple[str, str] | None) -> int:
    if last_key is None:
        return 0
    return 1 + [(row.image.split, row.key) for row in rows].index(last_key)


def _counted(
    results: Iterator[Sample | str], progress: Progress, done: int, total: int
) -> Iterator[Sample | str]:
    for result in results:
        yield result
        done += 1
        progress(done, total)


def _usable(
    results: Iterator[Sample | str], recipe: Recipe, skipped: list[str]
) -> Iterator[Sample]:
    """The samples among ``results``; sentences go to ``skipped``, or end the work."""
    for result in results:
        if isinstance(result, Sample):
            yield result
        elif recipe.on_bad_image == "fail":
            raise DataError(f"{result}; repair it, or leave out such images with --on-bad skip")
        else:
            log.warning("skipped %s", result)
            skipped.append(result)


def _store_all(out_url: str, built: Iterator[BuiltShard], work: _Work) -> None:
    """Store the shards in the background, and record those that are stored, in order."""
    storing: deque[tuple[BuiltShard, Future[None]]] = deque()
    recorded = len(work.shards)

    def record() -> None:
        nonlocal recorded
        _record(out_url, work)
        recorded = len(work.shards)

    def finish_oldest() -> None:
        try:
            entry, future = storing.popleft()
            future.result()
            work.shards.append(entry.shard)
            work.last_key = (entry.shard.split, entry.last_key)
            work.orientations += entry.orientations
            work.first_images += entry.first_images
            if len(work.shards) > recorded * (1 + _RECORD_EVERY):
                record()
        except BaseException:
            storing.clear()  # no later shard may be recorded without this one
            raise

    with ThreadPoolExecutor(_STORING, thread_name_prefix="store") as threads:
        try:
            for entry in built:
                storing.append((entry, threads.submit(_store, out_url, entry)))
                if len(storing) > _STORING:
                    finish_oldest()
        finally:  # also after an error or a signal: the same command continues after these shards
            try:
                while storing:
                    finish_oldest()
            finally:
                if len(work.shards) > recorded:
                    record()


def _record(out_url: str, work: _Work) -> None:
    content = {
        "fingerprint": work.fingerprint,
        "last_key": work.last_key,
        "orientations": work.orientations,
        "first_images": work.first_images,
        "shards": [format_shard(shard) for shard in work.shards],
    }
    url = storage.join(out_url, UNFINISHED_NAME)
    storage.write_atomically(url, json.dumps(content).encode())


def _store(out_url: str, entry: BuiltShard) -> None:
    storage.write_atomically(storage.join(out_url, entry.shard.name), entry.tar)
    storage.write_atomically(storage.join(out_url, entry.shard.table_name), entry.table)
