"""The number of images in one forward pass of a rank, where ``engine.micro_batch`` is not set."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch

from pipeline.distributed.collectives import broadcast_object, gather_objects
from pipeline.distributed.world import World
from pipeline.methods.base import Method
from pipeline.model.backbone import ImageFeatures

log = logging.getLogger(__name__)

CPU_MICRO_BATCH = 16
_ENOUGH = 1.03  # a larger part must be faster by this factor


def choose_micro_batch(method: Method, share: int, world: World) -> int:
    """Images per forward pass, the same on every rank; ``share`` is a rank's part of a batch.

    On a CPU 16. On a GPU the fastest power of two, measured by passes of ``method`` on blank
    images, whose memory leaves room for the rest of the share.
    """
    if world.device.type != "cuda":
        return CPU_MICRO_BATCH

    def seconds(n_images: int) -> float | None:
        return _seconds_on_gpu(method, n_images, share)

    chosen = min(gather_objects(fastest(share, seconds)))
    log.info("engine.micro_batch is not set: passes of %d images", chosen)
    return int(broadcast_object(chosen))


def fastest(share: int, seconds: Callable[[int], float | None]) -> int:
    """The power of two up to ``share`` images that takes the least time per image.

    ``seconds`` is the time of a pass, None if there is not enough memory. A size that is hardly
    faster than a smaller one is not taken, nor one above a size without memory.
    """
    best, least = 1, float("inf")
    size = 1
    while size <= share:
        time_s = seconds(size)
        if time_s is None:
            break
        if time_s / size * _ENOUGH < least:
            best, least = size, time_s / size
        size *= 2
    return best


def _seconds_on_gpu(method: Method, n_images: int, share: int) -> float | None:
    """The time of the second of two passes forward and backward."""
    clip, inputs, device = method.clip, method.inputs, method.clip.device
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    shape = n_images, 3, clip.image_size, clip.image_size
    image_BCHW = torch.zeros(shape, dtype=torch.uint8, device=device) if inputs.images else None
    features = None
    try:
        for _ in range(2):
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            before, started = torch.cuda.memory_allocated(device), time.perf_counter()
            if inputs.features:
                features = blank_features(method, n_images)
            embedding_BE = method.embed(image_BCHW, features).embedding_BE
            held = torch.cuda.memory_allocated(device) - before
            if embedding_BE.requires_grad:
                torch.autograd.grad(embedding_BE.sum(), trained, allow_unused=True)
            torch.cuda.synchronize(device)
            seconds = time.perf_counter() - started
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None
    # The graphs of all parts of the share wait for the loss.
    total = torch.cuda.get_device_properties(device).total_memory
    waiting = held * (share / n_images - 1)
    return seconds if torch.cuda.max_memory_allocated(device) + waiting < 0.9 * total else None


def blank_features(method: Method, n_images: int) -> ImageFeatures:
    """Features of ``n_images`` images that are all zero."""
    clip = method.clip
    widths = {"joint_BE": clip.joint_width}
    columns = (
        torch.zeros(n_images, widths.get(name, clip.vision_width), device=clip.device)
        for name in ImageFeatures._fields
    )
    return ImageFeatures(*columns)
