"""A trial where Ray has put it: it launches its runs on the devices it was given.

It holds a process of the sweep's command only by reports; whatever ends it ends its runs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import tune
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pipeline.config import Config
from pipeline.errors import PipelineError, Preempted
from pipeline.launching.command import Devices, Place
from pipeline.launching.ports import reserved_port
from pipeline.launching.run_process import Ended, RunProcess
from pipeline.settings_file import parse_section
from pipeline.sweep.config import Metric, ResourceSettings
from pipeline.sweep.trial import Trial
from pipeline.sweep.trial_table import TrialRecord


@ray.remote(num_cpus=0)
class StopFlag:
    """What the command and its trials tell each other about stopping."""

    def __init__(self) -> None:
        self._raised = False
        self._gone: set[int] = set()

    def wave(self) -> None:
        """Ask every trial to stop with a snapshot."""
        self._raised = True

    def is_up(self) -> bool:
        """Whether trials are to stop."""
        return self._raised

    def note_gone(self, number: int) -> None:
        """Trial ``number`` has no process any more."""
        self._gone.add(number)

    def gone(self) -> set[int]:
        """The trials that have no process any more."""
        return self._gone


class TrialActor(tune.Trainable):
    """One trial; each step of it is one more learned task.

    Its results have ``held_s`` and ``report`` (a task report), ``is_last``, ``tasks_done``,
    ``value`` (the metric, mean over the repetitions so far); or, at the end, ``failure`` (a
    reason) or ``preempted``.
    """

    def setup(
        self,
        config: dict[str, Any],
        *,
        folder: str,
        n_tasks: int,
        metric: Metric,
        resources: ResourceSettings,
        losses: int,
        flag: ray.actor.ActorHandle,
    ) -> None:
        """Be trial ``config["number"]``, whose runs are ``config["runs"]`` unless it is refused."""
        os.chdir(folder)  # relative paths mean what they mean to the command
        self._held_since = time.monotonic()
        self._flag = flag
        self._metric = metric
        self._resources = resources
        self._record = TrialRecord(number=config["number"], parameters={})
        self._refused = config.get("refused")
        runs = [parse_section(Config, run, place="the trial") for run in config["runs"]]
        self._n_reports = len(runs) * n_tasks
        self._reports = Trial(
            runs,
            n_tasks=n_tasks,
            launch=self._launch,
            must_stop=lambda: ray.get(flag.is_up.remote()),
            losses=losses,
        ).reports()

    def step(self) -> dict[str, Any]:
        """The result of the next task."""
        if self._refused:
            return self._result(failure=self._refused, done=True)
        try:
            report = next(self._reports)
        except Preempted:
            return self._result(preempted=True, done=True)
        except PipelineError as error:
            return self._result(failure=str(error), done=True)
        self._record = self._record.model_copy(update={"reports": [*self._record.reports, report]})
        return self._result(
            report=report.model_dump(),
            tasks_done=report.tasks_done,
            value=self._record.value(self._metric),
            is_last=report.tasks_done == self._n_reports,
            done=report.tasks_done == self._n_reports,
        )

    def cleanup(self) -> None:
        """End the present run, with its processes on every node."""
        self._reports.close()
        ray.get(self._flag.note_gone.remote(self._record.number))

    def _result(self, **values: Any) -> dict[str, Any]:
        return {"held_s": time.monotonic() - self._held_since, **values}

    @contextmanager
    def _launch(self, config: Config) -> Iterator[_OnAllNodes]:
        """The launched run of ``config`` on every node of the trial."""
        group = ray.util.get_current_placement_group()
        others = [
            _NodeActor.options(**_bundle(self._resources, group, node)).remote(os.getcwd())
            for node in range(1, self._resources.nodes)
        ]
        try:
            with reserved_port() as port:
                mine = own_devices(self._resources)
                devices = (
                    mine,
                    *ray.get([node.devices.remote(self._resources) for node in others]),
                )
                address = ray.util.get_node_ip_address()
                places = [Place(devices, node, address, port) for node in range(len(devices))]
                for node, place in zip(others, places[1:], strict=True):
                    node.start.remote(config, place)
                yield _OnAllNodes(RunProcess(config, places[0]), others)
        finally:
            for node in others:
                ray.kill(node)


class _OnAllNodes:
    """A run that is on this node, and perhaps on others."""

    def __init__(self, here: RunProcess, others: list[ray.actor.ActorHandle]) -> None:
        self._here = here
        self._others = others

    def is_running(self) -> bool:
        """Whether this node's part goes on; it meets the others in every step."""
        return self._here.is_running()

    def end(self) -> Ended:
        """How this node's part ended, once every node's has."""
        ended = self._here.end()
        self._stop_others()
        return ended

    def stop(self) -> None:
        """End every node's part with a snapshot."""
        self._here.stop()
        self._stop_others()

    def keep_log(self, url: str) -> None:
        """Copy what this node's part said."""
        self._here.keep_log(url)

    def _stop_others(self) -> None:
        for node in self._others:
            try:
                ray.get(node.stop.remote())
            except ray.exceptions.RayActorError:  # its node has gone, and its ranks with it
                continue


@ray.remote
class _NodeActor:
    """The part of a run on another node of its trial."""

    def __init__(self, folder: str) -> None:
        os.chdir(folder)
        self._run: RunProcess | None = None

    def devices(self, resources: ResourceSettings) -> Devices:
        """What this node gives to the run."""
        return own_devices(resources)

    def start(self, config: Config, place: Place) -> None:
        """Launch this node's ranks."""
        self._run = RunProcess(config, place)
        self._log_url = f"{config.output}.node-{place.node}.log"

    def stop(self) -> None:
        """End them, if they still run, and keep what they said."""
        if self._run:
            self._run.stop()
            self._run.keep_log(self._log_url)
            self._run = None


def own_devices(resources: ResourceSettings) -> Devices:
    """What Ray has given to the actor that asks.

    Raises:
        PipelineError: GPUs are named by something else than their numbers.
    """
    names = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    return devices_of(names[: resources.gpus], resources)


def devices_of(gpu_names: list[str], resources: ResourceSettings) -> Devices:
    """The devices that Ray calls ``gpu_names``, or cores if there are none.

    Raises:
        PipelineError: as :func:`own_devices`.
    """
    if not all(name.isdigit() for name in gpu_names):
        raise PipelineError(
            f"Ray names GPUs {gpu_names} here, and deepspeed takes numbers only; set "
            "CUDA_VISIBLE_DEVICES to numbers where Ray is started"
        )
    if not gpu_names:
        return Devices(ranks=resources.cpus)
    threads = max(1, resources.cpus // len(gpu_names))
    return Devices(len(gpu_names), tuple(map(int, gpu_names)), threads)


def _bundle(resources: ResourceSettings, group: PlacementGroup, node: int) -> dict[str, Any]:
    """Where the actor for a further node goes, and what it takes there."""
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=node)
    return {
        "num_cpus": resources.cpus,
        "num_gpus": resources.gpus,
        "scheduling_strategy": strategy,
    }
