"""The samples of some classes, computed from the segments of an index.

A selection is a list of segments until its samples are asked for; the address of a sample is read
when it is taken. So the number of samples, bytes and steps of every task costs nothing per sample.

S samples, G segments.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

import numpy as np

from pipeline.data.addresses import AddressTable
from pipeline.data.samples import Samples
from pipeline.data.shard import Segments, Shard

Split = Literal["train", "test", "validation", "fit"]


@dataclass(frozen=True, eq=False)
class SegmentColumns:
    """All segments of an index, in canonical order: by shard, then by position."""

    label_G: np.ndarray
    samples_G: np.ndarray
    bytes_G: np.ndarray
    shard_G: np.ndarray  # position of the shard in the index
    number_G: np.ndarray  # position in the shard
    first_sample_G: np.ndarray  # number of the first sample in the data set
    first_row_G: np.ndarray  # position of the first sample in the shard

    @classmethod
    def of(cls, shards: tuple[Shard, ...]) -> SegmentColumns:
        """The segments of ``shards``."""
        columns = [Segments.of(shard.segments).columns_4G for shard in shards]
        no_column = np.empty((4, 0), dtype=np.int64)
        label_G, samples_G, _, bytes_G = np.concatenate([no_column, *columns], axis=1)
        counts = [len(shard.segments) for shard in shards]
        shard_G = np.repeat(np.arange(len(shards)), counts)
        number_G = ramps(np.array(counts, dtype=np.int64))
        first_sample_G = np.cumsum(samples_G) - samples_G
        first_of_shard = np.cumsum([0, *(shard.samples for shard in shards)])[:-1]
        first_row_G = first_sample_G - first_of_shard[shard_G]
        return cls(label_G, samples_G, bytes_G, shard_G, number_G, first_sample_G, first_row_G)


class SelectedIndex(Protocol):
    """What a selection knows of its index, a ``ShardIndex``."""

    @property
    def url(self) -> str:
        """Its folder."""

    @property
    def sha256(self) -> str:
        """The hash of its content."""

    @property
    def shards(self) -> tuple[Shard, ...]:
        """Its shards."""

    @property
    def segments(self) -> SegmentColumns:
        """Its segments."""

    def addresses(self, shard_number: int) -> AddressTable:
        """The address of each sample of one shard."""


@dataclass(frozen=True, eq=False)
class Selection:
    """The samples of some classes of one split, in canonical order: by shard, then by position.

    ``sample_S`` numbers the samples of the complete data set, ``label_S`` are their classes.
    """

    index: SelectedIndex = field(repr=False)
    split: Split
    chosen_G: np.ndarray = field(repr=False)  # positions in ``index.segments``, ascending
    kept: np.ndarray | None = field(default=None, repr=False)  # positions of samples; None: all

    def __len__(self) -> int:
        if self.kept is not None:
            return len(self.kept)
        return int(self.index.segments.samples_G[self.chosen_G].sum())

    @cached_property
    def place_S(self) -> np.ndarray:
        """The position in ``index.segments`` of each sample's segment; ascending."""
        place_S = np.repeat(self.chosen_G, self.index.segments.samples_G[self.chosen_G])
        return place_S if self.kept is None else place_S[self.kept]

    @cached_property
    def sample_S(self) -> np.ndarray:
        """The number of each sample in the data set; ascending."""
        segments = self.index.segments
        samples_G = segments.samples_G[self.chosen_G]
        sample_S = np.repeat(segments.first_sample_G[self.chosen_G], samples_G) + ramps(samples_G)
        return sample_S if self.kept is None else sample_S[self.kept]

    @cached_property
    def label_S(self) -> np.ndarray:
        """The class of each sample."""
        return self.index.segments.label_G[self.place_S]

    @cached_property
    def place_G(self) -> np.ndarray:
        """The positions in ``index.segments`` of the segments with samples; ascending."""
        if self.kept is None:
            return self.chosen_G[self.index.segments.samples_G[self.chosen_G] > 0]
        return np.unique(self.place_S)

    @property
    def segments(self) -> list[tuple[int, int]]:
        """The distinct (shard, segment) pairs of these samples, in canonical order."""
        segments, place_G = self.index.segments, self.place_G
        columns = segments.shard_G[place_G], segments.number_G[place_G]
        return list(zip(*(column.tolist() for column in columns), strict=True))

    @property
    def shard_numbers(self) -> list[int]:
        """The positions of the shards of these samples, ascending."""
        return np.unique(self.index.segments.shard_G[self.place_G]).tolist()

    @property
    def shards(self) -> list[str]:
        """The names of the shards of these samples."""
        return [self.index.shards[number].name for number in self.shard_numbers]

    @property
    def bytes(self) -> int:
        """Bytes to fetch in order to read every sample once."""
        return int(self.index.segments.bytes_G[self.place_G].sum())

    @property
    def keys(self) -> tuple[str, ...]:
        """The key of each sample."""
        return self.take(np.arange(len(self))).keys

    def take(self, positions: np.ndarray) -> Samples:
        """The samples at ``positions``, in that order, with their addresses.

        Raises:
            StorageError: a table cannot be read.
            DataError: a table does not match the index, or its split is closed.
        """
        segments, place_S = self.index.segments, self.place_S[positions]
        sample_S, shard_S = self.sample_S[positions], segments.shard_G[place_S]
        row_S = sample_S - segments.first_sample_G[place_S]
        rows = (row_S + segments.first_row_G[place_S]).tolist()
        tables = {number: self.index.addresses(number) for number in set(shard_S.tolist())}
        found = [(tables[number], row) for number, row in zip(shard_S.tolist(), rows, strict=True)]
        return Samples(
            sample_S=sample_S,
            label_S=segments.label_G[place_S],
            shard_S=shard_S,
            segment_S=segments.number_G[place_S],
            row_S=row_S,
            offset_S=np.array([table.offset_S.item(row) for table, row in found], dtype=np.int64),
            size_S=np.array([table.size_S.item(row) for table, row in found], dtype=np.int64),
            crc32_S=np.array([table.crc32_S.item(row) for table, row in found], dtype=np.int64),
            keys=tuple(table.key(row) for table, row in found),
        )


def ramps(lengths: np.ndarray) -> np.ndarray:
    """0, 1, … for each length, one after another: ``[2, 3]`` gives ``[0, 1, 0, 1, 2]``."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)
