"""The peak of memory during a piece of work."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_RESET_PEAK = "5"  # see proc(5), clear_refs


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """The most memory that the process held on ``device`` during ``work``.

    On a GPU the tensors, weights included. On a CPU everything, libraries included: Linux only.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device)
    Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    work()
    found = re.search(r"^VmHWM:\s*(\d+) kB", _STATUS.read_text(), flags=re.MULTILINE)
    assert found, f"{_STATUS} has no VmHWM"
    return 1024 * int(found[1])
