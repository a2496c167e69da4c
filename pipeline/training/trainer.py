"""The loop: tasks, epochs, steps, a test of every seen class after each task, and snapshots.

Axes: C classes · E embedding width.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch import Tensor

from pipeline.classifiers import Moment
from pipeline.config import Config
from pipeline.data.batch import Batch
from pipeline.distributed.collectives import raise_on_all_ranks
from pipeline.distributed.preemption import StopRequest
from pipeline.distributed.world import World
from pipeline.errors import Preempted
from pipeline.events import EventLog
from pipeline.methods.base import Losses, Method
from pipeline.model.backbone import ImageFeatures
from pipeline.output.learned import restore_method
from pipeline.output.recovery import Recovered
from pipeline.output.results_builder import ResultsBuilder, Stage
from pipeline.output.writer import OutputWriter
from pipeline.rng import seed_torch
from pipeline.tasks import Task
from pipeline.training.batches import TaskBatches
from pipeline.training.divergence import LossGuard
from pipeline.training.encoder import Encoder
from pipeline.training.engine import Engine
from pipeline.training.evaluator import Evaluator
from pipeline.training.features import FrozenFeatures, FrozenStore
from pipeline.training.progress import Display, StepClock, StepReport
from pipeline.training.task_data import TaskData

log = logging.getLogger(__name__)


@dataclass
class TaskProgress:
    """How far the training of a task has come."""

    step: int = 0  # optimizer steps done
    seconds: float = 0.0


@dataclass(frozen=True)
class TaskTensors:
    """The tensors of a task that was interrupted: its own, and the optimizer's state of them."""

    learned: dict[str, Tensor] = field(default_factory=dict)
    optimizer_state: dict[str, Tensor] = field(default_factory=dict)


class Trainer:
    """Learns the tasks of ``results`` in order with ``method`` and fills ``results``."""

    def __init__(
        self,
        config: Config,
        world: World,
        method: Method,
        data: TaskData,
        batches: TaskBatches,
        results: ResultsBuilder,
        writer: OutputWriter,
        stop: StopRequest,
    ) -> None:
        self._config = config
        self._method = method
        self._data = data
        self._batches = batches
        self._results = results
        self._tasks = results.tasks
        self._writer = writer
        self._stop = stop
        self._world = world
        self._note = config.tuning.note if config.tuning else None
        self._display = Display(
            n_tasks=len(self._tasks),
            n_epochs=config.optim.epochs,
            shown=world.is_main,
            note=self._note,
        )
        store = FrozenStore(method.clip, world, config.data.feature_cache)
        self._encoder = Encoder(method, world, batches, store, batch=config.data.eval_batch)
        self._evaluator = Evaluator(method, data, self._encoder)
        self._loss_guard = LossGuard(config.optim, results)
        self._events = EventLog(os.environ)
        self._steps_before = 0  # of all tasks before the present one

    def run(self, recovered: Recovered | None = None) -> None:
        """Learn every task, testing all seen classes after each.

        With ``recovered`` it continues from there, and ends as if it had not been interrupted.

        Raises:
            Preempted: the run was asked to stop and can continue from a snapshot.
            TakenOverError: a later start of the run writes to its output.
        """
        self._writer.write_config()
        try:
            with self._display:
                self._learn_tasks(recovered)
        except Preempted:
            self._writer.finish()
            raise
        finally:
            self._writer.close()

    def _learn_tasks(self, recovered: Recovered | None) -> None:
        """The tasks that are still to be learned, the first of them from where it was left."""
        progress, tensors = self._restore(recovered) if recovered else (TaskProgress(), None)
        self._display.expect(sum(self._data.n_steps(task) for task in self._tasks))
        for task in self._tasks[len(self._results.learned_sha256) :]:
            trainable = self._learn_task(task, progress, tensors)
            self._test_seen(task, trainable, progress)
            progress, tensors = TaskProgress(), None
            self._snapshot(task.index + 1, progress)
        self._writer.finish()

    def _restore(self, recovered: Recovered) -> tuple[TaskProgress, TaskTensors]:
        """Continue where the snapshot was taken: the progress and tensors of the present task."""
        snapshot, state = recovered.snapshot, recovered.snapshot.state
        restore_method(self._method, self._tasks, recovered.learned, seed=self._config.seed)
        done = self._tasks[: len(recovered.learned)]
        self._steps_before = sum(self._data.n_steps(task) for task in done)
        self._results.restore(state["results"])
        self._results.learned_sha256 = list(state["learned_sha256"])
        self._batches.restore_skipped(state["skipped_samples"])
        means = snapshot.group("class_means")
        ordered = (means[str(index)] for index in range(len(means)))
        self._evaluator.class_means = [mean_CE.to(self._world.device) for mean_CE in ordered]
        self._writer.restore_metrics(state["metrics_lines"])
        for index in range(len(self._results.stages)):
            self._display.scored(index, *self._results.accuracy_after(index))
        log.info("going on at task %d, step %d", snapshot.task + 1, snapshot.step + 1)
        if self._world.is_main:
            self._events.add("resumed", task=snapshot.task, step=snapshot.step)
        return (
            TaskProgress(snapshot.step, state["train_seconds"]),
            TaskTensors(snapshot.group("learned"), snapshot.group("moments")),
        )

    def _learn_task(self, task: Task, progress: TaskProgress, tensors: TaskTensors | None) -> int:
        """Train ``task``, check that nothing else has changed, write its learned tensors.

        Returns the number of trainable parameters.
        """
        before = {name: value.clone() for name, value in self._method.state_dict().items()}
        seed_torch("task", self._config.seed, task.index)
        self._method.train()
        self._method.begin_task(task)
        self._fit("start", task, progress)
        trainable = sum(p.numel() for p in self._method.parameters() if p.requires_grad)
        changeable = self._method.changeable_names()
        if tensors:
            self._method.load_learned(tensors.learned)
        if trainable:
            names = changeable | (self._method.state_dict().keys() - before.keys())
            self._train(task, progress, names, tensors.optimizer_state if tensors else {})
        self._method.eval()
        self._fit("end", task, progress)
        seed_torch("end of task", self._config.seed, task.index)
        self._method.end_task(task)
        after = self._method.state_dict()
        _check_untouched(before, after, changeable, task)
        learned = {n: v for n, v in after.items() if n in changeable or n not in before}
        self._results.learned_sha256.append(self._writer.write_learned(task.index, learned))
        self._steps_before += self._data.n_steps(task)
        return trainable

    def _fit(self, moment: Moment, task: Task, progress: TaskProgress) -> None:
        """Show the method all training images of ``task``, if it wants them at this moment."""
        if moment not in self._method.fits:
            return
        started = time.perf_counter()
        with torch.no_grad():
            self._method.fit(moment, self._encoder.everything(self._data.train(task)))
        progress.seconds += time.perf_counter() - started

    def _train(
        self, task: Task, progress: TaskProgress, names: Set[str], state: Mapping[str, Tensor]
    ) -> None:
        """The optimizer steps of one task that are still to be done; ``names`` may change."""
        n_steps, per_epoch = self._data.n_steps(task), self._data.steps_per_epoch(task)
        if progress.step and progress.step == n_steps:
            return
        frozen = self._features_of(task)
        engine = Engine(self._method, self._config, self._world, n_steps)
        engine.restore(state)
        clock = StepClock(self._config.data.global_batch)
        started = time.perf_counter() - progress.seconds
        try:
            done_epochs = progress.step // per_epoch if progress.step else 0
            for epoch in range(done_epochs, self._config.optim.epochs):
                start_step = progress.step - epoch * per_epoch
                for batch in self._in_step(self._epoch(task, epoch, start_step)):
                    losses = self._step(task, progress.step, engine, batch, frozen)
                    clock.count(batch.wait_s)
                    self._report(task, epoch, progress.step, n_steps, losses, engine, clock)
                    progress.step += 1
                    progress.seconds = time.perf_counter() - started
                    if progress.step % self._config.snapshot.every_steps == 0:
                        self._snapshot(task.index, progress, names, engine.optimizer_state())
            self._snapshot(task.index, progress, names)
        except Preempted:
            self._snapshot(task.index, progress, names, engine.optimizer_state())
            raise
        finally:
            engine.close()

    def _epoch(self, task: Task, epoch: int, start_step: int) -> Iterator[Batch]:
        """This rank's batches of one epoch; without images if the method reads none."""
        images = self._method.inputs.images
        return self._batches.train(task, epoch, start_step=start_step, images=images)

    def _in_step(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, one on every rank before any rank continues.

        An error of one rank, or a request to stop, ends all ranks before the same step.
        """
        while True:
            with raise_on_all_ranks():
                self._stop.raise_if_requested()
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _step(
        self, task: Task, step: int, engine: Engine, batch: Batch, frozen: FrozenFeatures | None
    ) -> Losses:
        """One optimizer step, unless the loss is not finite and that is tolerated."""
        selection = self._data.train(task)
        if frozen and batch.image_BCHW is None:
            batch = replace(batch, sample_B=frozen.usable(batch.sample_B, selection))
        features = frozen.of(batch.sample_B) if frozen else self._encode_frozen(batch)
        label_B = self._batches.classes(batch.label_B)
        losses = engine.step(step, batch.image_BCHW, label_B, features)
        self._loss_guard.check(losses.total, task=task.index, step=step, batch=batch, of=selection)
        return losses

    def _report(
        self,
        task: Task,
        epoch: int,
        step: int,
        n_steps: int,
        losses: Losses,
        engine: Engine,
        clock: StepClock,
    ) -> None:
        """Show a step to people and programs, every ``log_every`` steps and at the last one."""
        if self._world.is_main:
            self._events.add("step", task=task.index, step=step)
        if step % self._config.log_every and step != n_steps - 1:
            return
        speed, wait = clock.read()
        rate, loss = engine.learning_rate(step), float(losses.total)
        report = StepReport(task.index, epoch, step, loss, rate, speed, wait)
        self._display.step(report, done=self._steps_before + step + 1, task_steps=n_steps)
        terms = {name: float(term.detach()) for name, term in losses.terms.items()}
        self._writer.metrics.add(kind="step", **vars(report), terms=terms)

    def _snapshot(
        self,
        task: int,
        progress: TaskProgress,
        names: Set[str] = frozenset(),
        optimizer_state: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        """Start to write where the run stands: before step ``progress.step`` of ``task``.

        ``names`` are the tensors that the task may change. The group names are those on disk.
        """
        skipped = self._batches.skipped_samples()
        is_started, now = progress.step > 0, self._method.state_dict()
        means = self._evaluator.class_means
        groups = {
            "learned": {name: now[name] for name in names} if is_started else {},
            "moments": optimizer_state if is_started else {},
            "class_means": {str(index): mean_CE for index, mean_CE in enumerate(means)},
        }
        state = {
            "identity": self._results.manifest["identity"],
            "results": self._results.state(),
            "skipped_samples": {sample: vars(entry) for sample, entry in skipped.items()},
            "learned_sha256": self._results.learned_sha256,
            "train_seconds": progress.seconds,
        }
        self._writer.write_snapshot(task, progress.step, groups, state)

    def _test_seen(self, task: Task, trainable: int, progress: TaskProgress) -> None:
        """Test every class seen so far and add the stage to the results."""
        started = time.perf_counter()
        tested = self._evaluator.test(self._tasks[: task.index + 1])
        images = progress.step * self._config.data.global_batch
        stage = Stage(
            correct=tuple(score.correct for score in tested.scores),
            images=tuple(score.images for score in tested.scores),
            anchor_cosine=tested.anchor_cosine,
            modality_gap=tested.modality_gap,
            feature_drift=tested.feature_drift,
            trainable_parameters=trainable,
            images_per_second=images / progress.seconds if images else None,
            train_seconds=progress.seconds,
            test_seconds=time.perf_counter() - started,
        )
        self._results.stages.append(stage)
        skipped = self._batches.skipped_samples()
        self._results.skipped_samples = [vars(sample) for sample in skipped.values()]
        micro, row = self._results.accuracy_after(task.index)
        self._display.scored(task.index, micro, row)
        note = {"note": self._note} if self._note else {}
        self._writer.metrics.add(kind="stage", task=task.index, micro=micro, accuracy=row, **note)
        self._writer.write_results(self._results.build())
        if self._world.is_main:
            self._events.add("learned", task=task.index)

    def _features_of(self, task: Task) -> FrozenFeatures | None:
        """Frozen features of a task's images, unless augmentation makes them new each time."""
        transform = self._batches.train_transform
        if not self._method.inputs.features or transform.is_random:
            return None
        return self._encoder.features(self._data.train(task), transform)

    def _encode_frozen(self, batch: Batch) -> ImageFeatures | None:
        """Frozen features of a batch, if the method reads them."""
        if not self._method.inputs.features:
            return None
        parts = batch.image_BCHW.split(self._config.engine.micro_batch)
        with torch.no_grad():
            columns = zip(*map(self._method.clip.encode_image, parts), strict=True)
            return ImageFeatures(*map(torch.cat, columns))


def _check_untouched(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], changeable: Set[str], task: Task
) -> None:
    """Every tensor that the task may not change is bit-equal to before."""
    for name, value in before.items():
        assert name in changeable or torch.equal(value, after[name]), (
            f"task {task.index + 1} changed {name}, which belongs to an earlier task"
        )
