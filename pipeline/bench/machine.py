"""The machine, its software and the commit: no figure is worth anything without them."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pipeline.version import git_commit

_PACKAGES = ("torch", "deepspeed", "open_clip_torch", "webdataset")
_SETTINGS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def describe_machine(world_size: int = 1) -> dict[str, Any]:
    """Processor, GPUs, threads, versions and commit, in plain JSON types."""
    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpus": [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())],
        "ranks": world_size,
        "threads": torch.get_num_threads(),
        "environment": {name: os.environ[name] for name in _SETTINGS if name in os.environ},
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
        "system": f"{platform.system()} {platform.release()}",
        "load": round(os.getloadavg()[0], 2),  # of the last minute: others at work here
        "git_commit": git_commit(),
    }


def _processor() -> str:
    """The model of the processor, with its vector extensions as torch uses them."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
