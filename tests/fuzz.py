"""Damaged copies of a file, for tests of everything that reads files: ``mutations``.

``python -m pytest -m slow -k fuzz`` uses a few inputs per format; ``FUZZ_INPUTS=2000`` before it
sets their number.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

VARIABLE = "FUZZ_INPUTS"
_EXTREME = (0x00, 0x01, 0x7F, 0x80, 0xFE, 0xFF)


def inputs_per_format(default: int) -> int:
    """The number of damaged inputs that a test uses per format."""
    return int(os.environ.get(VARIABLE, default))


def mutations(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """``count`` damaged copies of ``data``, equal for an equal ``seed``.

    In turn: cut at a random place; 1 to 8 bits flipped; 1 to 8 bytes replaced, often by an extreme
    value; a slice removed; a slice repeated.
    """
    draw = np.random.default_rng(seed)
    for number in range(count):
        kind, damaged = number % 5, bytearray(data)
        start = int(draw.integers(0, max(1, len(data))))
        length = int(draw.integers(1, 64))
        if kind == 0:
            del damaged[start:]
        elif kind == 3:
            del damaged[start : start + length]
        elif kind == 4:
            damaged[start:start] = damaged[start : start + length]
        else:
            for place in draw.integers(0, len(data), int(draw.integers(1, 9))).tolist():
                if kind == 1:
                    damaged[place] ^= 1 << int(draw.integers(0, 8))
                else:
                    value = int(draw.integers(0, 256))
                    extreme = _EXTREME[int(draw.integers(0, len(_EXTREME)))]
                    damaged[place] = extreme if draw.random() < 0.5 else value
        yield bytes(damaged)


class PeakMemory:
    """The growth of this process's memory, C libraries included, at its highest since the start."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # restarts the kernel's record of the peak
        self._start = self._status("VmRSS")

    def growth(self) -> int:
        """Bytes."""
        return self._status("VmHWM") - self._start

    @staticmethod
    def _status(name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert found, name
        return int(found[1]) << 10
