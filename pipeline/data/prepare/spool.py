"""Images of Parquet files, copied once to a local file, so that they can be read in any order.

The rows of a published training set are shuffled, and shards are sorted by class. Without the copy
a row group would be read again for nearly every image.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from pipeline.data.decoding import SampleError
from pipeline.data.prepare.listing import Row
from pipeline.data.prepare.parquet_source import read_image_bytes
from pipeline.data.prepare.source_images import SourceImage, describe
from pipeline.errors import StorageError

log = logging.getLogger(__name__)

_REPORT_EVERY_S = 30.0


@dataclass(frozen=True)
class SpooledImages:
    """The image files of one spool."""

    path: str

    def read(self, image: SourceImage) -> bytes:
        """The bytes of one image file."""
        offset, separator, rest = image.location.partition("+")
        if not separator:
            raise SampleError(image.location)
        with open(self.path, "rb") as file:
            file.seek(int(offset))
            return file.read(int(rest))


@contextmanager
def spool_parquet(rows: Sequence[Row]) -> Iterator[tuple[SpooledImages, Sequence[Row]]]:
    """The images of ``rows`` in a temporary file, and the rows with their places in it.

    Raises:
        DataError: a Parquet file cannot be read.
        StorageError: the folder for temporary files has not enough room.
    """
    places: dict[str, dict[int, int]] = defaultdict(dict)
    total = f"{len(rows):,}"
    for position, entry in enumerate(rows):
        url, _, number = entry.image.location.rpartition("#")
        places[url][int(number)] = position
    try:
        created = tempfile.TemporaryDirectory(prefix="prepare-", ignore_cleanup_errors=True)
    except OSError as error:
        raise StorageError(
            f"there is no folder for temporary files ({describe(error)}); set TMPDIR"
        ) from error
    with created as folder:
        path = Path(folder) / "images"
        spooled, copied, reported = list(rows), 0, time.monotonic()
        with path.open("wb") as file:
            for url, positions in places.items():
                for row, data in read_image_bytes(url, sorted(positions)):
                    location = _append(file, data) if isinstance(data, bytes) else str(data)
                    position = positions[row]
                    image = replace(rows[position].image, location=location)
                    spooled[position] = replace(rows[position], image=image)
                copied += len(positions)
                if time.monotonic() - reported >= _REPORT_EVERY_S:
                    log.info("copied %s of %s images of Parquet files", f"{copied:,}", total)
                    reported = time.monotonic()
        yield SpooledImages(str(path)), spooled


def _append(file: BinaryIO, data: bytes) -> str:
    place = file.tell()
    try:
        file.write(data)
        file.flush()
    except OSError as error:
        raise StorageError(
            f"cannot copy images of Parquet files to {file.name} ({describe(error)}); "
            "set TMPDIR to a folder with room for all of them"
        ) from error
    return f"{place}+{len(data)}"
