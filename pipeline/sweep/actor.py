"""A trial as an actor of Ray: it launches its runs on the devices that Ray has assigned to it.

The end of the actor, for whatever reason, ends its runs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from ray.actor import ActorHandle
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


class StopFlag:
    """An actor of Ray: whether trials must stop, and the trials that have ended."""

    def __init__(self) -> None:
        self._is_requested = False
        self._ended: set[int] = set()

    def request(self) -> None:
        """Ask every trial to stop with a snapshot."""
        self._is_requested = True

    def is_requested(self) -> bool:
        """Whether trials must stop."""
        return self._is_requested

    def add_ended_trial(self, number: int) -> None:
        """Note that trial ``number`` has no process any more."""
        self._ended.add(number)

    def ended_trials(self) -> set[int]:
        """The trials that have no process any more."""
        return self._ended


@dataclass(frozen=True)
class TrialSettings:
    """The settings that all trials of a sweep share."""

    folder: str  # of the command: relative paths start there
    n_tasks: int  # of one run
    metric: Metric
    resources: ResourceSettings
    node_losses: int
    check_owner: Callable[[], None]  # raises if a later start of the command has taken over


class TrialActor(tune.Trainable):
    """One trial; each step of Tune is one more learned task.

    Every result has ``held_s``, the seconds since the actor got its devices. A task adds ``report``
    (a task report), ``tasks_done``, ``value`` (the metric, mean over the repetitions so far) and
    ``is_last``. The result of a trial that ends early has ``failure`` (a reason) or ``preempted``.
    """

    def setup(  # type: ignore[override]  # tune.with_parameters adds the last two
        self,
        config: dict[str, Any],
        *,
        settings: TrialSettings,
        flag: ActorHandle[Any],
    ) -> None:
        """Prepare the trial with the spec ``config``, see :meth:`SweepPlan.trial_spec`."""
        os.chdir(settings.folder)
        self._held_since = time.monotonic()
        self._flag = flag
        self._settings = settings
        self._record = TrialRecord(number=config["number"], parameters={})
        self._refused = config.get("refused")
        runs = [parse_section(Config, run, place="the trial") for run in config["runs"]]
        self._n_reports = len(runs) * settings.n_tasks
        self._reports = Trial(
            runs,
            n_tasks=settings.n_tasks,
            launch=self._launch,
            must_stop=lambda: ray.get(flag.is_requested.remote()),
            check_owner=settings.check_owner,
            node_losses=settings.node_losses,
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
            value=self._record.value(self._settings.metric),
            is_last=report.tasks_done == self._n_reports,
            done=report.tasks_done == self._n_reports,
        )

    def cleanup(self) -> None:
        """End the current run, with its processes on every node."""
        self._reports.close()
        ray.get(self._flag.add_ended_trial.remote(self._record.number))

    def _result(self, **values: Any) -> dict[str, Any]:
        return {"held_s": time.monotonic() - self._held_since, **values}

    @contextmanager
    def _launch(self, config: Config) -> Iterator[_OnAllNodes]:
        """The launched run of ``config`` on every node of the trial."""
        resources, group = self._settings.resources, ray.util.get_current_placement_group()
        others: list[Any] = [
            ray.remote(_NodeActor).options(**_bundle(resources, group, node)).remote(os.getcwd())
            for node in range(1, resources.nodes)
        ]
        try:
            with reserved_port() as port:
                theirs = ray.get([node.devices.remote(resources) for node in others])
                devices = (own_devices(resources), *theirs)
                address = ray.util.get_node_ip_address()
                places = [Place(devices, node, address, port) for node in range(len(devices))]
                for node, place in zip(others, places[1:], strict=True):
                    node.start.remote(config, place)
                yield _OnAllNodes(RunProcess(config, places[0]), others)
        finally:
            for node in others:
                ray.kill(node)


class _OnAllNodes:
    """A run on this node, and perhaps on others."""

    def __init__(self, here: RunProcess, others: list[Any]) -> None:
        self._here = here
        self._others = others

    def is_running(self) -> bool:
        """Whether the part of this node runs; in every step it waits for the other parts."""
        return self._here.is_running()

    def end(self) -> Ended:
        """How the part of this node ended; the parts of all nodes have ended afterwards."""
        ended = self._here.end()
        self._stop_others()
        return ended

    def stop(self) -> None:
        """End the parts of all nodes with a snapshot."""
        self._here.stop()
        self._stop_others()

    def keep_log(self, url: str) -> None:
        """Append the log of this node to the file ``url``."""
        self._here.keep_log(url)

    def _stop_others(self) -> None:
        for node in self._others:
            try:
                ray.get(node.stop.remote())
            except ray.exceptions.RayActorError:  # its node is lost, and its ranks with it
                continue


class _NodeActor:
    """The part of a run on another node of its trial."""

    def __init__(self, folder: str) -> None:
        os.chdir(folder)
        self._run: RunProcess | None = None

    def devices(self, resources: ResourceSettings) -> Devices:
        """The devices of this node for the run."""
        return own_devices(resources)

    def start(self, config: Config, place: Place) -> None:
        """Launch the ranks of this node."""
        self._run = RunProcess(config, place)
        self._log_url = f"{config.output}.node-{place.node}.log"

    def stop(self) -> None:
        """End the ranks that still run, and keep their log."""
        if self._run:
            self._run.stop()
            self._run.keep_log(self._log_url)
            self._run = None


def own_devices(resources: ResourceSettings) -> Devices:
    """The devices that Ray has assigned to the calling actor.

    Raises:
        PipelineError: Ray names GPUs by other words than their numbers.
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
            f"Ray names GPUs {gpu_names} on this node, and deepspeed takes numbers only; set "
            "CUDA_VISIBLE_DEVICES to numbers where Ray is started"
        )
    if not gpu_names:
        return Devices(ranks=resources.cpus)
    threads = max(1, resources.cpus // len(gpu_names))
    return Devices(len(gpu_names), tuple(map(int, gpu_names)), threads)


def _bundle(resources: ResourceSettings, group: PlacementGroup | None, node: int) -> dict[str, Any]:
    """The place of the actor of a further node, and its resources there."""
    assert group is not None  # Tune runs every trial in one
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=node)
    return {
        "num_cpus": resources.cpus,
        "num_gpus": resources.gpus,
        "scheduling_strategy": strategy,
    }
