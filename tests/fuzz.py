"""Damaged copies of a file, for tests of everything that reads files.

``FUZZ_INPUTS=2000`` before the command of the tests sets the number of inputs per format. With
``pytest -s`` each format prints a line for the table in docs/RESULTS.md.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from pipeline.errors import PipelineError

VARIABLE = "FUZZ_INPUTS"
LONGEST_S = 20.0  # of one input; more is a hang
MOST_MEMORY = 1 << 30  # bytes by which the inputs of a format may raise the peak
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


def count_refused(
    name: str, good: bytes, read: Callable[[bytes], object], *, default: int, seed: int = 5
) -> int:
    """Give ``read`` the good bytes, then damaged copies; the number that it refuses.

    Fails if it raises anything but a ``PipelineError`` of one line, hangs or fills the memory.
    """
    read(good)
    count, refused, memory = inputs_per_format(default), 0, PeakMemory()
    for number, data in enumerate(mutations(good, count, seed)):
        started = time.monotonic()
        try:
            read(data)
        except PipelineError as error:
            assert "\n" not in str(error) and len(str(error)) < 1_000, (name, number)
            refused += 1
        except Exception as error:
            raise AssertionError(f"{name}, input {number}: {type(error).__name__}") from error
        assert time.monotonic() - started < LONGEST_S, (name, number)
    assert memory.growth() < MOST_MEMORY, f"{name}: {memory.growth():,} bytes"
    print(f"\n{name}: {count:,} inputs, {refused:,} refused, {memory}")
    return refused


@contextmanager
def bounded_memory(name: str, input_bytes: int, most: int = 400 << 20) -> Iterator[None]:
    """Fails if the block raises the memory of this process by more than ``most`` bytes."""
    memory = PeakMemory()
    yield
    assert memory.growth() < most, f"{name}: {memory}"
    line = f"\nbomb, {name}: {input_bytes / 1e3:,.0f} kB, {memory}"
    print(line, file=sys.__stdout__)  # also beside `capsys`


class PeakMemory:
    """The growth of this process's memory, C libraries included, at its highest since the start."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # restarts the kernel's record of the peak
        self._start = self._status("VmRSS")

    def growth(self) -> int:
        """Bytes."""
        return self._status("VmHWM") - self._start

    def __str__(self) -> str:
        return f"{self.growth() / 1e6:.0f} MB"

    @staticmethod
    def _status(name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert found, name
        return int(found[1]) << 10
