"""Checks and statistics of a prepared data set: it is read again, counted and compared by hash."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline import storage
from pipeline.data.decoding import SampleError, decode_sample
from pipeline.data.index import INDEX_NAME, ShardIndex
from pipeline.data.prepare.parallel import Progress, map_in_order, no_progress
from pipeline.data.samples import SampleTable, read_table
from pipeline.data.shard import Shard
from pipeline.errors import PipelineError


@dataclass(frozen=True)
class ClassStatistics:
    """One class: images per split, and their stored bytes."""

    name: str
    folder: str
    train: int
    test: int
    bytes: int


@dataclass(frozen=True)
class Statistics:
    """A data set in numbers.

    ``leaks`` are images of the test split whose equal bytes are also in the training split, as
    (test key, training key); ``repeats`` counts the further copies within each split.
    """

    classes: tuple[ClassStatistics, ...]
    shards: int
    bytes: int
    leaks: tuple[tuple[str, str], ...]
    repeats: dict[str, int]


def find_faults(
    index: ShardIndex, *, jobs: int = 1, progress: Progress = no_progress
) -> Iterator[str]:
    """Each difference from the index, as one sentence: bytes, tables, samples, unknown files.

    Reads and decodes the complete data set; ``progress`` counts shards.
    """
    work = [(index.url, shard) for shard in index.shards]
    for done, faults in enumerate(map_in_order(_shard_faults, work, jobs=jobs), start=1):
        yield from faults
        progress(done, len(work))
    for place in unknown_files(index):
        yield f"{place}: does not belong to the data set"


def unknown_files(index: ShardIndex) -> list[str]:
    """The places of files in the folder of the data set that its index does not name."""
    known = {INDEX_NAME}
    known.update(name for shard in index.shards for name in (shard.name, shard.table_name))
    files = storage.list_files(index.url)
    return [storage.redact(url) for url in files if url.rpartition("/")[2] not in known]


def gather_statistics(index: ShardIndex) -> Statistics:
    """Counts, sizes and duplicates, from the index and its tables alone."""
    train, test = index.count("train"), index.count("test")
    stored: Counter[int] = Counter()
    keys: dict[str, dict[bytes, list[str]]] = {
        "train": defaultdict(list),
        "test": defaultdict(list),
    }
    for number, shard in enumerate(index.shards):
        for segment in shard.segments:
            stored[segment.label] += segment.bytes
        table = index.table(number)
        for key, digest in zip(table.keys, table.image_sha256_S32, strict=True):
            keys[shard.split][digest.tobytes()].append(key)
    leaks = [
        (key, keys["train"][digest][0])
        for digest, names in keys["test"].items()
        if digest in keys["train"]
        for key in names
    ]
    return Statistics(
        classes=tuple(
            ClassStatistics(name, folder, train[label], test[label], stored[label])
            for label, (name, folder) in enumerate(
                zip(index.class_names, index.class_folders, strict=True)
            )
        ),
        shards=len(index.shards),
        bytes=sum(shard.bytes for shard in index.shards),
        leaks=tuple(leaks),
        repeats={
            split: sum(len(names) - 1 for names in groups.values())
            for split, groups in keys.items()
        },
    )


def _shard_faults(work: tuple[str, Shard]) -> list[str]:
    url, shard = work
    place = storage.redact(storage.join(url, shard.name))
    try:
        data = storage.read_bytes(storage.join(url, shard.name), most=shard.bytes)
        table = read_table(shard)
    except PipelineError as error:
        return [str(error)]
    if len(data) != shard.bytes or hashlib.sha256(data).hexdigest() != shard.sha256:
        return [f"{place}: its {len(data):,} bytes do not match the index"]
    faults = [f"{place}: {fault}" for fault in _tar_faults(data, table)]
    faults += [
        f"{place}: the segment at {segment.offset:,} does not have the sha256 in the index"
        for segment in shard.segments
        if _sha256(data, segment.offset, segment.bytes) != segment.sha256
    ]
    labels = [s.label for s in shard.segments for _ in range(s.samples)]
    for row, label in enumerate(labels):
        fault = _sample_fault(data, table, row, label)
        if fault:
            faults.append(f"{place}: sample {table.keys[row]} {fault}")
    return faults


def _tar_faults(data: bytes, table: SampleTable) -> list[str]:
    """The members of the tar that are not in its table."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            names = {member.name.partition(".")[0] for member in tar}
    except Exception as error:  # tarfile raises almost anything on a damaged header
        return [f"is not a tar ({type(error).__name__}: {error})"]
    return [
        f"contains {name}, which is not in its table" for name in sorted(names - set(table.keys))
    ]


def _sample_fault(data: bytes, table: SampleTable, row: int, label: int) -> str | None:
    offset, size = int(table.offset_S[row]), int(table.size_S[row])
    record = data[offset : offset + size]
    if zlib.crc32(record) != table.crc32_S[row]:
        return "does not have the bytes in its table"
    try:
        decode_sample(record, key=table.keys[row], label=label)
    except SampleError as error:
        return str(error)
    return None


def _sha256(data: bytes, offset: int, size: int) -> str:
    return hashlib.sha256(memoryview(data)[offset : offset + size]).hexdigest()
