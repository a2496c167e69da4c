"""Copies between host and device that do not stop either of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class ToDevice:
    """Copies batches to ``device``; a GPU continues its earlier work meanwhile.

    The copy leaves from pinned memory on a stream beside the running step. Work that is asked for
    later waits for it on the GPU, not on the host. On a CPU nothing is copied.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, value: Tensor) -> Tensor:
        """``value`` on the device."""
        if self._stream is None or value.device == self._device:
            return value.to(self._device)
        with torch.cuda.stream(self._stream):
            copy = value.pin_memory().to(self._device, non_blocking=True)
        running = torch.cuda.current_stream(self._device)
        running.wait_stream(self._stream)
        copy.record_stream(running)  # its memory is not given away while the step reads it
        return copy


def without_waiting(value: Tensor, device: torch.device) -> Tensor:
    """A small ``value`` on ``device``, in turn with the work there; the host does not wait for it.

    Without pinned memory the host would wait until a GPU has done all earlier work.
    """
    if device.type != "cuda" or value.device == device:
        return value.to(device)
    return value.pin_memory().to(device, non_blocking=True)


def start_reading(value: Tensor) -> Callable[[], Tensor]:
    """Start to copy ``value`` to the host; the result waits for the copy and gives it.

    A GPU continues with later work meanwhile.
    """
    value = value.detach()
    if value.device.type != "cuda":
        return lambda: value
    copy = torch.empty_like(value, device="cpu", pin_memory=True)
    copy.copy_(value, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def read() -> Tensor:
        copied.synchronize()
        return copy

    return read
