"""The plan and the estimated cost of a sweep, before it starts.

Axes: B images.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import fmean

import torch

from pipeline import storage
from pipeline.config import Config, MethodConfig
from pipeline.data.plan import steps_per_epoch
from pipeline.distributed.world import process_group, read_world
from pipeline.methods import build_method
from pipeline.methods.base import MethodContext, class_prompts
from pipeline.model.backbone import FrozenClip
from pipeline.model.weights import load_clip
from pipeline.sweep.config import SamplerSettings
from pipeline.sweep.plan import SweepPlan
from pipeline.sweep.searcher import Proposer
from pipeline.sweep.trial_table import read_records
from pipeline.tasks import Task
from pipeline.training.run import Run, check_run

_TIMED_IMAGES = 16


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
    """Device-hours of the whole sweep."""
    finished = [r for r in read_records(plan.sweep.output) if r.status == "finished"]
    if finished:
        hours = fmean(record.device_hours for record in finished) * plan.sweep.trials
        basis = f"{len(finished)} finished trials of this sweep"
    else:
        hours, basis = _timed_hours(plan)
    bound = "at most " if plan.sweep.scheduler.name == "asha" else ""
    return [
        f"estimate   {bound}{hours:.3g} {device}-hours",
        f"           rests on {basis}",
    ]


def _timed_hours(plan: SweepPlan) -> tuple[float, str]:
    """Device-hours from one timed batch per method on this machine, and the basis in words."""
    sweep = plan.sweep
    proposer = Proposer(plan.space, SamplerSettings(name="random"), sweep.metric, sweep.trials)
    first = dict(enumerate(plan.first))
    configs = [
        plan.run_config(proposer.propose(n, first.get(n)), n, 0) for n in range(sweep.trials)
    ]
    run = check_run(configs[0], sweep.resources.ranks)
    methods = {config.method.name: config.method for config in configs}
    seconds = {name: _seconds_per_image(run, method) for name, method in methods.items()}
    total_s = 0.0
    for config in configs:
        learn_s, test_s = seconds[config.method.name]
        learned, tested = _images(run, config)
        total_s += (learned * learn_s + tested * test_s) * len(sweep.repetitions)
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else "one core"
    timed = ", ".join(f"{name} {1 / learn_s:.0f}" for name, (learn_s, _) in seconds.items())
    return total_s / 3600, (
        f"{len(configs)} random draws and a timed batch per method on {machine} of this machine "
        f"({timed} images/s in training); start-up, decoding and transfer are not counted"
    )


def _images(run: Run, config: Config) -> tuple[int, int]:
    """How many images go through the tower in a run: in training, and in all its tests."""
    count, fraction = run.index.count("train"), config.data.validation_fraction
    learned = tested = 0
    for task in run.tasks:
        images = sum(count[label] for label in task.labels)
        steps = steps_per_epoch(
            int(images * (1 - fraction)), config.data.global_batch, config.data.tail
        )
        learned += steps * config.data.global_batch * config.optim.epochs
        tested += int(images * fraction) * (len(run.tasks) - task.index)
    return learned, tested


def _seconds_per_image(run: Run, method: MethodConfig) -> tuple[float, float]:
    """Seconds of one device for an image in training and in a test, with random weights."""
    torch.set_num_threads(1)  # a device is one core
    world = read_world({})
    config = run.config
    with process_group(world, timeout_s=60):
        clip = load_clip(config.model.arch, "random", device=world.device)
        setting = MethodContext(
            clip, lambda name: class_prompts(config.text, name), config.text.ensemble, config.seed
        )
        learner = build_method(method, setting)
        learner.begin_task(run.tasks[0])
        image_BCHW, label_B = _draw(clip, run.tasks[0])

        def learn() -> None:
            with torch.no_grad():
                frozen = clip.encode_image(image_BCHW) if learner.reads_frozen else None
            loss = learner(image_BCHW, label_B, frozen).total
            if loss.requires_grad:
                loss.backward()

        @torch.no_grad()
        def embed() -> None:
            frozen = clip.encode_image(image_BCHW) if learner.reads_frozen else None
            learner.embed(image_BCHW, frozen or clip.encode_image(image_BCHW))

        return _seconds(learn) / _TIMED_IMAGES, _seconds(embed) / _TIMED_IMAGES


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
