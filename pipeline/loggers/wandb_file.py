"""The history in a local file of Weights & Biases, as far as it was written.

The file is a log in the format of LevelDB (``doc/log_format.md`` in its repository) behind a header
of 7 bytes; its records are protobuf messages of W&B.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

_BLOCK, _HEADER, _FILE_HEADER = 32768, 7, 7
_WHOLE, _LAST = 1, 4  # kinds of a part that completes a record


def read_history(file: Path) -> Iterator[dict[str, Any]]:
    """The rows that a run has logged, with their ``_step``; a row that is cut off is left out.

    Raises:
        ValueError: the file has another form.
    """
    data = file.read_bytes()
    if data[:4] not in (b":W&B", b""):
        raise ValueError(f"{file}: is not a file of this version of W&B")
    for content in _records(data):
        record = Record.FromString(content)
        if record.HasField("history"):
            items = {i.key or "/".join(i.nested_key): i.value_json for i in record.history.item}
            row = {key: json.loads(text) for key, text in items.items()}
            yield {"_step": record.history.step.num, **row}


def _records(data: bytes) -> Iterator[bytes]:
    at, parts = _FILE_HEADER, b""
    while at + _HEADER <= len(data):
        if _BLOCK - at % _BLOCK < _HEADER:  # the padding at the end of a block
            at += _BLOCK - at % _BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + _HEADER])
        start, at = at + _HEADER, at + _HEADER + length
        if at > len(data):
            return
        parts += data[start:at]
        if kind in (_WHOLE, _LAST):
            yield parts
            parts = b""
