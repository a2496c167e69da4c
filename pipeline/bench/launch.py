"""Seconds from the command to the first optimizer step, and where they go.

The run is started by ``deepspeed`` with ``bench.ranks`` ranks, then as one process by
``python -m pipeline.train``, which has no launcher. The parts:
``front process``: ``deepspeed`` itself; ``inner launcher``: the process that it starts on the node;
``imports``: of rank 0; ``checks and model``: until the backbone is loaded; ``first step``: the
start of the task, its frozen features, the engine, the first batch and the step.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.bench.settings import DRAWN, BenchConfig
from pipeline.bench.stage import load_backbone, with_drawn
from pipeline.bench.timing import Figure, NotMeasured
from pipeline.config import Config, dump_config
from pipeline.distributed.world import World, process_group
from pipeline.events import read_events
from pipeline.launching.command import (
    TRAIN,
    launch_command,
    launch_environment,
    on_this_host,
    visible_devices,
)
from pipeline.launching.ports import reserved_port
from pipeline.launching.processes import end_processes, processes_of

_PARTS = ("front process", "inner launcher", "imports", "checks and model", "first step")
_EVENTS = ("imported", "loaded", "step")
PARTS_OF = {"deepspeed": _PARTS, "one process": _PARTS[2:]}
_LONGEST_S = 300.0  # from the command to the first step
_POLL_S = 0.02
_IMAGES = 2  # of each drawn class


def measure(config: BenchConfig, world: World) -> Iterator[Figure]:
    """The parts of each start.

    Raises:
        NotMeasured: a launcher has started this process, or no first step comes.
    """
    if world.world_size > 1:
        raise NotMeasured("it starts the ranks itself")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        if config.data.index == DRAWN:
            counts = [_IMAGES] * config.task_classes
            with process_group(world, timeout_s=config.engine.timeout_s):
                size = load_backbone(config, world).image_size
                config = with_drawn(config, f"{folder}/images", counts, counts, size)
        for launcher, parts in PARTS_OF.items():
            starts = [
                _start(config, Path(tempfile.mkdtemp(dir=folder)), launcher)
                for _ in range(config.bench.warmup + config.bench.repeats)
            ][config.bench.warmup :]
            total = tuple(start[-1] for start in starts)
            yield Figure.of(
                f"{launcher}: command to first step", total, "s", target="< 6 on one core"
            )
            for number, part in enumerate(parts):
                spent = tuple(at[number] - (at[number - 1] if number else 0.0) for at in starts)
                yield Figure.of(f"{launcher}: {part}", spent, "s")


def _start(config: BenchConfig, folder: Path, launcher: str) -> list[float]:
    """The seconds from the command to the end of each part of a start."""
    file, event_file = folder / "config.yaml", folder / "events.jsonl"
    run = Config.model_validate(config.model_dump(exclude={"bench"}))
    file.write_text(dump_config(run.model_copy(update={"output": f"{folder}/run"})))
    devices = visible_devices(config.bench.ranks)
    with reserved_port() as port, open(folder / "log", "wb") as log:
        command = launch_command(file, on_this_host(devices, port), quiet=True)
        if launcher == "one process":
            command = [sys.executable, str(TRAIN), "--config", str(file)]
        environment = launch_environment(os.environ, devices, event_file=event_file)
        started = time.time()
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            moments = _watch(file, process, levels=1 if launcher == "one process" else 3)
        finally:
            end_processes(processes_of(file))
            process.wait()
    return [moment - started for moment in moments]


def _watch(file: Path, started: subprocess.Popen[bytes], *, levels: int) -> list[float]:
    """When each process below ``started`` began, and when each of ``_EVENTS`` came.

    ``levels`` counts the processes from the command to the first rank. They are searched for once,
    since a search takes time from them on the same core.
    """
    seen: dict[str, float] = {}
    processes: list[float] = []
    deadline = time.monotonic() + _LONGEST_S
    while "step" not in seen:
        if started.poll() is not None or time.monotonic() > deadline:
            raise NotMeasured(f"no first step; the command ended with {started.poll()}")
        for event in read_events(file.with_name("events.jsonl"))[0]:
            if "imported" not in seen:
                processes = sorted(process.create_time() for process in processes_of(file))
            seen.setdefault(event["event"], time.time())
        time.sleep(_POLL_S)
    return [*processes[1:levels], *(seen[event] for event in _EVENTS)]
