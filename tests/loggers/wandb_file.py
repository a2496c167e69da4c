"""The history in a file of Weights & Biases, which is a log of LevelDB with protobuf records."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

_BLOCK, _HEADER, _FILE_HEADER = 32768, 7, 7


def read_history(file: Path) -> list[dict[str, Any]]:
    """The rows that a run has logged, with their ``_step``."""
    rows = []
    for data in _records(file.read_bytes()):
        record = Record.FromString(data)
        if record.HasField("history"):
            items = record.history.item
            rows.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
            rows[-1].setdefault("_step", record.history.step.num)
    return rows


def _records(data: bytes) -> Iterator[bytes]:
    """The records of a log: each is in one part, or in parts that end with type 4."""
    assert data[:4] == b":W&B"
    at, parts = _FILE_HEADER, b""
    while at + _HEADER <= len(data):
        if _BLOCK - at % _BLOCK < _HEADER:
            at += _BLOCK - at % _BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + _HEADER])
        parts += data[at + _HEADER : at + _HEADER + length]
        at += _HEADER + length
        if kind in (1, 4):
            yield parts
            parts = b""
