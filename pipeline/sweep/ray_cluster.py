"""The Ray cluster of a sweep: an existing one, or one that lives as long as the command.

Ray's state is in a temporary folder, since no later start needs it. No process of a started cluster
outlives the command, even if the command is killed.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from pipeline.errors import ConfigError
from pipeline.sweep.config import ResourceSettings

_ROOT = str(Path(__file__).resolve().parents[2])
_OBJECT_STORE_BYTES = 80 << 20  # it has to hold settings and reports only


@contextmanager
def ray_cluster(address: str | None, resources: ResourceSettings) -> Iterator[str]:
    """Connect to Ray within the block; gives a folder on this host for Ray's files.

    Raises:
        ConfigError: the cluster cannot be reached, or has no room for one trial.
    """
    # Short, since the path of a Unix socket may have at most 107 characters.
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        options |= {
            "num_cpus": len(os.sched_getaffinity(0)),
            "object_store_memory": _OBJECT_STORE_BYTES,
            "include_dashboard": False,
            "_temp_dir": folder,
        }
        os.environ["PYTHONPATH"] = _with_root(os.environ.get("PYTHONPATH"))
    else:
        options |= {"address": address}
        options["runtime_env"] = {"env_vars": {"PYTHONPATH": _with_root(None)}}
    try:
        try:
            with _user_signals_blocked():
                ray.init(**options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ConfigError(
                f"address: cannot use Ray at {address!r}: {reason}; start that cluster, or leave "
                "address out"
            ) from error
        _check_room(resources)
        yield folder
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _with_root(path: str | None) -> str:
    """``path`` with this checkout in front, for the workers of Ray."""
    return os.pathsep.join(filter(None, (_ROOT, path)))


@contextmanager
def _user_signals_blocked() -> Iterator[None]:
    """Block SIGUSR2 in Ray's processes, which would die of the warning of a batch system."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _check_room(resources: ResourceSettings) -> None:
    """Raise if the cluster has no room for a trial, which would otherwise wait for ever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    roomy = [
        node
        for node in nodes
        if node.get("CPU", 0) >= resources.cpus and node.get("GPU", 0) >= resources.gpus
    ]
    if len(roomy) < resources.nodes:
        found = ", ".join(f"{n.get('CPU', 0):.0f} CPUs {n.get('GPU', 0):.0f} GPUs" for n in nodes)
        raise ConfigError(
            f"resources: a trial needs {resources.nodes} node(s) with {resources.cpus} CPUs and "
            f"{resources.gpus} GPUs each, and Ray has {found}; lower resources, or set address"
        )
