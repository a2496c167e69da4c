"""A data set of shards against its index: by size, or by content."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from pipeline import storage
from pipeline.data.index import INDEX_NAME, ShardIndex, read_index
from pipeline.data.prepare.target import UNFINISHED_NAME
from pipeline.data.shard_check import sizes_by_name
from pipeline.inspection.findings import Findings, Part, Progress, hash_file

_THREADS = 4


def inspect_data_set(folder: str, *, full: bool, progress: Progress) -> Findings:
    """The shards in ``folder`` and their tables; ``full`` reads all of them.

    Raises:
        DataError: the index is damaged.
        StorageError: a file cannot be read.
    """
    place = storage.redact(folder)
    if not storage.exists(storage.join(folder, INDEX_NAME)):
        note = "start the same `python -m pipeline.prepare shard` again to finish"
        size = storage.size(storage.join(folder, UNFINISHED_NAME))
        parts = [Part(UNFINISHED_NAME, size, note=note)]
        return Findings("data set", place, "not prepared completely", False, {}, parts)
    index = read_index(folder)
    images = sum(shard.samples for shard in index.shards)
    stage = f"{images:,} images of {len(index.class_names):,} classes"
    parts = list(_parts(index))
    if full:
        parts = _read(folder, parts, progress)
    return Findings("data set", place, stage, True, _facts(index), parts)


def _facts(index: ShardIndex) -> dict[str, Any]:
    counts = {split: index.count(split) for split in ("train", "test")}
    return {
        "classes": len(index.class_names),
        "class_names": list(index.class_names),
        **{f"{split}_images": sum(count.values()) for split, count in counts.items()},
        **{
            f"{split}_images_of_a_class": [min(count.values(), default=0), max(count.values())]
            for split, count in counts.items()
            if any(count.values())
        },
        "shards": dict(Counter(shard.split for shard in index.shards)),
        "bytes": sum(shard.bytes for shard in index.shards),
        "index_sha256": index.sha256,
        "exif_orientation": index.orientation,
        **(index.membership.facts if index.membership else {}),
    }


def _parts(index: ShardIndex) -> Iterator[Part]:
    found = sizes_by_name(index.url, index.shards)
    for shard in index.shards:
        size, fault = found[shard.name], None
        if size is None:
            fault = "is missing"
        elif size != shard.bytes:
            fault = f"has {size:,} bytes, and the index records {shard.bytes:,}"
        yield Part(shard.name, size, shard.sha256, fault)
        if shard.table_name in found:
            size = found[shard.table_name]
            fault = "is missing" if size is None else None
            yield Part(shard.table_name, size, shard.table_sha256, fault)


def _read(folder: str, parts: list[Part], progress: Progress) -> list[Part]:
    """The same parts, after the content of each was compared with the index."""

    def read(part: Part) -> Part:
        if part.fault or part.bytes is None:
            return part
        if hash_file(storage.join(folder, part.name), part.bytes) == part.sha256:
            return part
        return replace(part, fault="has another content than the index records (sha256)")

    checked = []
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="read") as threads:
        for part in threads.map(read, parts):
            checked.append(part)
            progress(len(checked), len(parts))
    return checked
