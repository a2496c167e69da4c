"""Command: pictures into shards (``python -m pipeline.prepare shard --source PATH --out URL``)."""

from __future__ import annotations

import argparse
import io
import json
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import PurePosixPath
from urllib.parse import quote

from PIL import Image

from pipeline import storage
from pipeline.data.decoding import SampleError, open_image
from pipeline.data.index import INDEX_NAME, Shard, format_index
from pipeline.data.pictures import SPLITS, Picture, PictureSource, open_source
from pipeline.data.writer import Sample, build_shards
from pipeline.errors import ConfigError, DataError, PipelineError

log = logging.getLogger(__name__)

_JPEG_QUALITY = 95
_LONGEST_KEY = 90  # what a tar header holds, less the suffix


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 on success, 2 with one sentence on stderr for a fault of the input."""
    parser = _build_parser()
    options = parser.parse_args(arguments)
    try:
        shards = shard(
            options.source,
            options.out,
            names=options.names,
            shard_bytes=_parse_size(options.shard_size),
            resize=options.resize,
            overwrite=options.overwrite,
        )
    except PipelineError as error:
        print(error, file=sys.stderr)
        return 2
    samples = sum(entry.samples for entry in shards)
    print(f"{storage.redact(options.out)}: {samples:,} pictures in {len(shards)} shards")
    return 0


def shard(
    source_url: str,
    out_url: str,
    *,
    names: str | None = None,
    shard_bytes: int = 64 << 20,
    resize: int | None = None,
    overwrite: bool = False,
) -> list[Shard]:
    """Write the pictures of ``source_url`` as shards and an index below ``out_url``.

    ``names`` is a JSON list of ``{"name", "folder"}``: readable class names, in the index's order.
    ``resize`` shrinks the short side to that many pixels; smaller pictures keep their bytes.

    Raises:
        PipelineError: the source or the target cannot be used.
    """
    index_url = storage.join(out_url, INDEX_NAME)
    if storage.exists(index_url) and not overwrite:
        raise ConfigError(
            f"{storage.redact(index_url)} exists already; give another --out, or --overwrite"
        )
    source = open_source(source_url)
    pictures = source.list()
    class_names, class_folders = _read_classes(names, pictures)
    ordered = _sorted_pictures(pictures, class_folders)
    storage.remove(index_url)
    shards = []
    for built in build_shards(_samples(source, ordered, resize), shard_bytes=shard_bytes):
        storage.write_atomically(storage.join(out_url, built.shard.name), built.tar)
        storage.write_atomically(storage.join(out_url, built.shard.table_name), built.table)
        shards.append(built.shard)
    storage.write_atomically(index_url, format_index(class_names, class_folders, shards))
    return shards


def _read_classes(
    names_url: str | None, pictures: Iterable[Picture]
) -> tuple[list[str], list[str]]:
    """Readable names and folders of the classes, in the order of the index."""
    found = sorted({picture.folder for picture in pictures})
    if names_url is None:
        return [folder.replace("_", " ") for folder in found], found
    place = storage.redact(names_url)
    try:
        entries = json.loads(storage.read_text(names_url))
        names = [str(entry["name"]) for entry in entries]
        folders = [str(entry["folder"]) for entry in entries]
    except (ValueError, KeyError, TypeError):
        raise DataError(f'{place}: is not a JSON list of {{"name": …, "folder": …}}') from None
    if len(set(folders)) != len(folders):
        raise DataError(f"{place}: lists a folder twice")
    unknown, absent = set(found) - set(folders), set(folders) - set(found)
    if unknown:
        raise DataError(f"{place}: does not list class {min(unknown)}, which the source has")
    if absent:
        raise DataError(f"{place}: lists class {min(absent)}, of which the source has no picture")
    return names, folders


def _sorted_pictures(
    pictures: Iterable[Picture], folders: Sequence[str]
) -> list[tuple[Picture, int, str]]:
    """(picture, label, key) by split, class and key; keys are unique within a split."""
    labels = {folder: label for label, folder in enumerate(folders)}
    rows = []
    taken: set[tuple[str, str]] = set()
    for picture in sorted(pictures):
        key = _key(picture, with_suffix=False)
        if (picture.split, key) in taken:
            key = _key(picture, with_suffix=True)
        if (picture.split, key) in taken:
            raise DataError(f"{picture.split}/{picture.folder}/{picture.path} is listed twice")
        taken.add((picture.split, key))
        rows.append((picture, labels[picture.folder], key))
    return sorted(rows, key=lambda row: (SPLITS.index(row[0].split), row[1], row[2]))


def _key(picture: Picture, *, with_suffix: bool) -> str:
    """A name that every tar tool keeps: WebDataset ends a key at the first dot."""
    path = picture.path if with_suffix else str(PurePosixPath(picture.path).with_suffix(""))
    key = quote(f"{picture.folder}/{path.lstrip('/')}").replace(".", "%2E")
    if len(key) > _LONGEST_KEY:
        digest = blake2b(key.encode(), digest_size=8).hexdigest()
        key = f"{key[: _LONGEST_KEY - 17]}-{digest}"
    return key


def _samples(
    source: PictureSource, rows: Iterable[tuple[Picture, int, str]], resize: int | None
) -> Iterator[Sample]:
    for picture, label, key in rows:
        try:
            suffix, data = _encode(source.read(picture), picture.suffix, resize)
        except SampleError as error:
            raise DataError(f"{picture.split}/{picture.folder}/{picture.path} {error}") from error
        yield Sample(picture.split, label, key, suffix, data)


def _encode(data: bytes, suffix: str, resize: int | None) -> tuple[str, bytes]:
    """The image file to store; decoding it here is what keeps broken pictures out of the shards."""
    image = open_image(data)
    width, height = image.size
    if resize is None or min(width, height) <= resize:
        return suffix, data
    scale = resize / min(width, height)
    size = (max(resize, round(width * scale)), max(resize, round(height * scale)))
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC, reducing_gap=None).save(
        buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0
    )
    return "jpg", buffer.getvalue()


def _parse_size(text: str) -> int:
    """Bytes from ``64MB``, ``1GiB`` or a plain number."""
    units = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}
    found = re.fullmatch(r"(\d+)\s*([KMG]I?)?B?", text.strip().upper())
    if not found:
        raise ConfigError(f"--shard-size {text!r} is not a size; write 64MB or 1GiB")
    return int(found[1]) * units[found[2] or ""]


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipeline.prepare", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("shard", help="write shards and their index")
    command.add_argument("--source", required=True, help="ImageFolder, .tar of one, or .csv")
    command.add_argument("--out", required=True, help="folder or URL that receives the shards")
    command.add_argument("--names", help='JSON list of {"name", "folder"}: names and class order')
    command.add_argument("--shard-size", default="64MB", help="upper limit per shard (64MB)")
    command.add_argument("--resize", type=int, help="shrink the short side to so many pixels")
    command.add_argument("--overwrite", action="store_true", help="replace an existing data set")
    return parser


if __name__ == "__main__":
    sys.exit(main())
