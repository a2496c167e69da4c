"""The plan and the estimated cost of a sweep, before it starts.

Axes: B images.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch

from pipeline import storage
from pipeline.config import Config, MethodConfig, dump_config
from pipeline.data.plan import steps_per_epoch
from pipeline.distributed.world import process_group, read_world
from pipeline.errors import RefusedBySystemError
from pipeline.launching.command import (
    launch_command,
    launch_environment,
    on_this_host,
    visible_devices,
)
from pipeline.launching.ports import reserved_port
from pipeline.methods import build_method, find_method
from pipeline.methods.base import MethodContext
from pipeline.model.backbone import FrozenClip, ImageFeatures
from pipeline.model.weights import load_clip
from pipeline.sweep.config import SamplerSettings
from pipeline.sweep.plan import SweepPlan
from pipeline.sweep.searcher import Proposer
from pipeline.sweep.trial_table import read_records
from pipeline.tasks import Task
from pipeline.training.checked_run import Run, check_run
from pipeline.training.task_data import TaskData

_TIMED_IMAGES = 16
_LAUNCH_S = 300.0  # longest time of a launch that is timed


def describe_sweep(plan: SweepPlan) -> str:
    """The space, the runs and an estimate of device-hours with its basis."""
    sweep = plan.sweep
    n_runs = sweep.trials * len(sweep.repetitions)
    scheduler = sweep.scheduler
    stopping = (
        f"the best 1/{scheduler.reduction_factor} continue after {scheduler.grace_tasks} task(s)"
        if scheduler.name == "asha"
        else "every trial runs to its end"
    )
    scored = "the test split" if sweep.is_oracle else "images held out from training"
    resources = sweep.resources
    device = "GPU" if resources.gpus else "core"
    lines = [
        *([plan.mark.upper()] if plan.mark else []),
        f"sweep      {sweep.name}: {sweep.run}",
        f"output     {storage.redact(sweep.output)}",
        f"protocol   {sweep.protocol}: {plan.n_tasks} task(s) per run, scored on {scored}",
        f"reported   {plan.excluded_tasks} first task(s) left out of best.yaml's summary figures",
        f"metric     {sweep.metric}",
        f"sampler    {sweep.sampler.name}, seed {sweep.sampler.seed}",
        f"scheduler  {scheduler.name}: {stopping}",
        f"runs       {sweep.trials} trials x {len(sweep.repetitions)} repetition(s) = {n_runs}",
        f"resources  {resources.ranks} {device}(s) on {resources.nodes} node(s) per trial",
        "",
        *(f"space      {key}: {domain}" for key, domain in plan.space.domains.items()),
        "",
        *_estimate(plan, device),
    ]
    return "\n".join(lines)


def _estimate(plan: SweepPlan, device: str) -> list[str]:
    """Lines about the device-hours of the sweep."""
    sweep = plan.sweep
    finished = [r for r in read_records(sweep.output) if r.status == "finished"]
    if finished:
        hours = fmean(record.device_hours for record in finished) * sweep.trials
        lines = [f"rests on {len(finished)} finished trials of this sweep"]
    else:
        seconds, basis = _timed_seconds(plan)
        n_runs = sweep.trials * len(sweep.repetitions)
        start_s = _start_up_seconds(plan)
        hours = (seconds + n_runs * sweep.resources.ranks * start_s) / 3600
        lines = [
            f"of which {seconds / 3600:.3g} for training and tests, and the rest for the start-up "
            f"of {n_runs} run(s), {start_s:.0f} s each as measured here",
            f"rests on {basis}",
        ]
    if sweep.scheduler.name == "asha":
        lines.insert(0, "if no trial is stopped early")
    return [f"estimate   about {hours:.3g} {device}-hours", *(f"           {x}" for x in lines)]


def _start_up_seconds(plan: SweepPlan) -> float:
    """Seconds from the launch of a run of one rank until it has imported everything.

    Raises:
        RefusedBySystemError: such a run cannot be launched on this machine.
    """
    with tempfile.TemporaryDirectory() as folder, reserved_port() as port:
        file = Path(folder) / "config.yaml"
        file.write_text(dump_config(plan.run))
        place = on_this_host(visible_devices(1, threads=1), port)
        command = launch_command(file, place, overrides=["--print-config"], quiet=True)
        environment = launch_environment(os.environ, place.devices)
        started = time.perf_counter()
        try:
            ended = subprocess.run(
                command,
                env=environment,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_LAUNCH_S,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RefusedBySystemError(
                f"the sweep: a run cannot be launched on this machine ({error}); start one with "
                "`deepspeed pipeline/train.py` to see why"
            ) from error
        if ended.returncode:
            last = (ended.stderr.strip() or "no message").splitlines()[-1]
            raise RefusedBySystemError(
                f"the sweep: a run that was launched here ended with {ended.returncode}: {last}; "
                "start one with `deepspeed pipeline/train.py` to see why"
            )
        return time.perf_counter() - started


def _timed_seconds(plan: SweepPlan) -> tuple[float, str]:
    """Device-seconds from one timed batch per method on this machine, and the basis in words."""
    sweep = plan.sweep
    proposer = Proposer(plan.space, SamplerSettings(name="random"), sweep.metric, sweep.trials)
    first = dict(enumerate(plan.first))
    configs = [
        plan.run_config(proposer.propose(n, first.get(n)), n, 0) for n in range(sweep.trials)
    ]
    run = check_run(configs[0], sweep.resources.ranks)
    methods = {config.method.name: config.method for config in configs}
    costs = {name: _time_method(run, method) for name, method in methods.items()}
    data = {name: _task_data(run, name) for name in methods}
    seconds = sum(
        costs[config.method.name].seconds(count_images(config, data[config.method.name], run.tasks))
        for config in configs
    )
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else "one core"
    timed = ", ".join(f"{name} {cost.images_per_second:.0f}" for name, cost in costs.items())
    return seconds * len(sweep.repetitions), (
        f"{len(configs)} random draws and a timed batch per method on {machine} of this machine "
        f"({timed} images/s in training); decoding and transfer are not counted"
    )


class ImageCounts(NamedTuple):
    """The number of images of one run, counted as often as they are used."""

    trained: int  # in all optimizer steps
    read: int  # in one pass over the training images of each task
    tested: int  # in all tests


def count_images(config: Config, data: TaskData, tasks: Sequence[Task]) -> ImageCounts:
    """The images of the run of ``config``, whose tasks have the images ``data``."""
    n_train = [len(data.train(task)) for task in tasks]
    batch, tail = config.data.global_batch, config.data.tail
    n_steps = config.optim.epochs * sum(steps_per_epoch(count, batch, tail) for count in n_train)
    # A task is tested after its own training and after that of every later task.
    n_tested = sum(len(data.test(task)) * (len(tasks) - task.index) for task in tasks)
    return ImageCounts(n_steps * batch, sum(n_train), n_tested)


@dataclass(frozen=True)
class _MethodCost:
    """Seconds of one device for an image."""

    train_s: float  # in an optimizer step; 0 for a method that trains nothing
    encode_s: float  # in a test, and in a pass over the training images
    n_passes: int  # over the training images of each task, beside its optimizer steps

    @property
    def images_per_second(self) -> float:
        """Speed of training."""
        return 1 / (self.train_s or self.encode_s)

    def seconds(self, images: ImageCounts) -> float:
        """Seconds of one device for a run."""
        encoded = images.tested + self.n_passes * images.read
        return images.trained * self.train_s + encoded * self.encode_s


def _task_data(run: Run, method: str) -> TaskData:
    """The images of the tasks of ``run`` as ``method`` uses them; all trials share them."""
    shown = find_method(method).training_images
    return TaskData(run.config, run.index, run.tasks, training_images=shown)


def _time_method(run: Run, method_config: MethodConfig) -> _MethodCost:
    """The cost of a method, with random weights in its towers."""
    torch.set_num_threads(1)  # a device is one core
    config, world = run.config, read_world({})
    with process_group(world, timeout_s=60):
        model = config.model
        clip = load_clip(model.arch, "random", device=world.device, precision=model.precision)
        method = build_method(method_config, MethodContext.of(config, clip))
        method.begin_task(run.tasks[0])
        image_BCHW, label_B = _draw(clip, run.tasks[0])

        def encode_frozen() -> ImageFeatures:
            with torch.no_grad():
                return clip.encode_image(image_BCHW)

        def train() -> None:
            frozen = encode_frozen() if method.inputs.features else None
            method(image_BCHW, label_B, frozen).total.backward()

        @torch.no_grad()
        def encode() -> None:
            method.encode(image_BCHW, encode_frozen() if method.needs_features else None)

        is_trained = any(parameter.requires_grad for parameter in method.parameters())
        return _MethodCost(
            train_s=_seconds(train) / _TIMED_IMAGES if is_trained else 0.0,
            encode_s=_seconds(encode) / _TIMED_IMAGES,
            n_passes=len(method.fits),
        )


def _draw(clip: FrozenClip, task: Task) -> tuple[torch.Tensor, torch.Tensor]:
    size = clip.image_size
    image_BCHW = torch.randint(0, 256, (_TIMED_IMAGES, 3, size, size), dtype=torch.uint8)
    label_B = task.first + torch.arange(_TIMED_IMAGES) % len(task.labels)
    return image_BCHW.to(clip.device), label_B.to(clip.device)


def _seconds(work: Callable[[], None]) -> float:
    """Seconds of the fastest of a few calls; the first call also prepares much.

    On a core only its own time counts, so that other programs do not matter.
    """
    on_gpu = torch.cuda.is_available()
    clock = time.perf_counter if on_gpu else time.process_time
    taken = []
    for _ in range(4):
        started = clock()
        work()
        if on_gpu:
            torch.cuda.synchronize()
        taken.append(clock() - started)
    return min(taken)
