"""The loop: tasks, epochs, steps, a test of every seen class after each task, and snapshots."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.classifiers import Moment
from pipeline.data.batch import Batch
from pipeline.distributed.collectives import raise_on_all_ranks
from pipeline.distributed.preemption import StopRequest
from pipeline.distributed.world import World
from pipeline.errors import Preempted
from pipeline.events import EventLog
from pipeline.methods.base import Losses, Method
from pipeline.output.learned import restore_method
from pipeline.output.recovery import Recovered
from pipeline.output.results_builder import ResultsBuilder
from pipeline.output.writer import OutputWriter
from pipeline.rng import seed_torch
from pipeline.tasks import Task
from pipeline.training.batches import TaskBatches
from pipeline.training.changes import TaskChanges
from pipeline.training.checked_run import Run
from pipeline.training.divergence import LossGuard
from pipeline.training.encoder import Encoder
from pipeline.training.engine import Engine
from pipeline.training.evaluator import Evaluator
from pipeline.training.features import FrozenStore
from pipeline.training.followers import Followers
from pipeline.training.inputs import StepInputs
from pipeline.training.label_space import open_label_space
from pipeline.training.progress import Display, StepClock, StepReport
from pipeline.training.retention import Retention
from pipeline.training.task_progress import InterruptedTask, TaskProgress

log = logging.getLogger(__name__)


class Trainer:
    """Learns the tasks of a run in order with ``method`` and fills ``results``.

    With ``recovered`` it continues from there, and ends as if it had not been interrupted.
    """

    def __init__(
        self,
        run: Run,
        world: World,
        method: Method,
        batches: TaskBatches,
        results: ResultsBuilder,
        writer: OutputWriter,
        display: Display,
        stop: StopRequest,
        recovered: Recovered | None = None,
        retention: Retention | None = None,
    ) -> None:
        config = run.config
        self._config = config
        self._world = world
        self._tasks = run.tasks
        self._data = run.data
        self._method = method
        self._batches = batches
        self._results = results
        self._writer = writer
        self._stop = stop
        self._recovered = recovered
        self._retention = retention or Retention()
        self._micro_batch: int | None = None  # chosen before the first step, if it is not set
        self._note = config.tuning.note if config.tuning else None
        self._display = display
        features = config.data.feature_cache
        store = FrozenStore(method.clip, world, features, first_layer=method.inputs.first_layer)
        self._encoder = Encoder(method, world, batches, store, batch=config.data.eval_batch)
        self._evaluator = Evaluator(
            method,
            run.data,
            self._encoder,
            keeps_predictions=config.evaluation.predictions,
            label_space=open_label_space(run, method),
        )
        self._followers = Followers(config, world)
        self._loss_guard = LossGuard(config.optim, results)
        self._events = EventLog(os.environ)

    def run(self) -> None:
        """Learn every task, testing all seen classes after each.

        Raises:
            Preempted: the run was asked to stop and can continue from a snapshot.
            TakenOverError: a later start of the run writes to its output.
        """
        self._report_event("loaded")
        self._writer.write_config()
        try:
            with self._followers:
                self._learn()
        finally:
            self._writer.close()

    def _learn(self) -> None:
        """Learn the tasks that are left; returns once everything is written."""
        try:
            with self._display:
                progress, left = self._restore()
                self._display.expect(sum(map(self._data.expected_steps, self._tasks)))
                self._followers.start(self._writer.metrics.lines, self._data.task_steps)
                for task in self._tasks[len(self._results.learned_sha256) :]:
                    changes = self._begin(task, left)
                    self._train(task, progress, changes, left)
                    self._end(task, changes)
                    self._test(task, progress, changes)
                    progress, left = TaskProgress(), InterruptedTask()
                    self._snapshot(task.index + 1, progress, {}, {})
                self._writer.finish()
        except Preempted:
            self._writer.finish()
            raise

    def _restore(self) -> tuple[TaskProgress, InterruptedTask]:
        """Continue where the snapshot was taken, if there is one."""
        if self._recovered is None:
            self._retention.test(self._results, self._evaluator, n_learned=0)
            return TaskProgress(), InterruptedTask()
        snapshot, state = self._recovered.snapshot, self._recovered.snapshot.state
        restore_method(self._method, self._tasks, self._recovered.learned, seed=self._config.seed)
        self._results.restore(state["results"])
        self._results.learned_sha256 = list(state["learned_sha256"])
        self._batches.restore_skipped(state["skipped_samples"])
        self._micro_batch = state.get("micro_batch")
        means = self._recovered.class_means(self._method.embedding_width)
        self._evaluator.class_means = [mean_CE.to(self._world.device) for mean_CE in means]
        self._writer.restore_metrics(state["metrics_lines"])
        for index in range(len(self._results.stages)):
            held_out = self._results.retention_after(index + 1)
            self._display.scored(index, *self._results.accuracy_after(index), held_out)
        log.info("continuing at task %d, step %d", snapshot.task + 1, snapshot.step + 1)
        self._report_event("resumed", task=snapshot.task, step=snapshot.step)
        return (
            TaskProgress(snapshot.step, state["train_seconds"]),
            InterruptedTask(snapshot.group("learned"), snapshot.group("moments")),
        )

    def _begin(self, task: Task, left: InterruptedTask) -> TaskChanges:
        """Prepare the method for ``task``, with the tensors that an interrupted run left."""
        self._display.doing("training", task.index)
        changes = TaskChanges(self._method)
        seed_torch("task", self._config.seed, task.index)
        self._method.train()
        self._method.begin_task(task)
        self._fit("start", task)
        changes.allow_trained()
        self._method.load_learned(left.learned)
        return changes

    def _train(
        self, task: Task, progress: TaskProgress, changes: TaskChanges, left: InterruptedTask
    ) -> None:
        """The optimizer steps of ``task`` that are still to be done."""
        n_steps = self._data.n_steps(task)
        if not changes.n_trainable or (progress.step and progress.step == n_steps):
            return
        clock = StepClock(self._config.data.global_batch)
        engine = Engine(
            self._method, self._config, self._world, n_steps, micro_batch=self._micro_batch
        )
        self._micro_batch = engine.micro_batch
        inputs = StepInputs(
            self._method,
            task,
            self._data.train(task),
            self._batches,
            self._encoder,
            micro_batch=self._micro_batch,
        )
        engine.restore(left.optimizer_state)
        try:
            for epoch, batch in self._in_step(task, progress, inputs):
                losses = engine.step(progress.step, *inputs.of(batch))
                self._check_loss(losses, task, progress, batch)
                clock.count(batch.wait_s)
                rate = engine.learning_rate(progress.step)
                self._report(task, epoch, progress, losses, rate, clock)
                progress.step += 1
                if progress.step % self._config.snapshot.every_steps == 0:
                    state = engine.optimizer_state()
                    self._snapshot(task.index, progress, changes.tensors(), state)
            self._snapshot(task.index, progress, changes.tensors(), {})
        except Preempted:
            self._snapshot(task.index, progress, changes.tensors(), engine.optimizer_state())
            raise
        finally:
            engine.close()

    def _in_step(
        self, task: Task, progress: TaskProgress, inputs: StepInputs
    ) -> Iterator[tuple[int, Batch]]:
        """The epoch and the batch of each step, on every rank before any rank continues.

        An error of one rank, or a request to stop, ends all ranks before the same step.
        """
        per_epoch = self._data.steps_per_epoch(task)
        first = progress.step // per_epoch if progress.step else 0
        for epoch in range(first, self._config.optim.epochs):
            batches = inputs.epoch(epoch, start_step=progress.step - epoch * per_epoch)
            while True:
                with raise_on_all_ranks():
                    self._stop.raise_if_requested()
                    batch = next(batches, None)
                if batch is None:
                    break
                yield epoch, batch

    def _end(self, task: Task, changes: TaskChanges) -> None:
        """Consolidate ``task``, check that nothing else has changed, write the learned tensors."""
        self._method.eval()
        self._fit("end", task)
        seed_torch("end of task", self._config.seed, task.index)
        self._method.end_task(task)
        changes.check(task)
        sha256 = self._writer.write_learned(task.index, changes.tensors())
        self._results.learned_sha256.append(sha256)

    def _fit(self, moment: Moment, task: Task) -> None:
        """Show the method all training images of ``task``, if it reads them at this moment."""
        if moment not in self._method.fits:
            return
        self._display.doing("fitting", task.index)
        with torch.no_grad():
            self._method.fit(moment, self._encoder.everything(self._data.train(task)))

    def _test(self, task: Task, progress: TaskProgress, changes: TaskChanges) -> None:
        """Test every class seen so far and add the stage to the results."""
        self._display.doing("testing", task.index)
        train_seconds, started = progress.seconds, time.perf_counter()
        tested = self._evaluator.test(self._tasks[: task.index + 1])
        test_seconds = time.perf_counter() - started
        self._retention.test(self._results, self._evaluator, n_learned=task.index + 1)
        self._results.add(
            tested.stage(
                n_trainable=changes.n_trainable,
                n_trained=progress.step * self._config.data.global_batch,
                train_seconds=train_seconds,
                test_seconds=test_seconds,
            )
        )
        change = tested.anchor_change
        self._results.anchor_cosines = change and change.cosines
        skipped = self._batches.skipped_samples()
        self._results.skipped_samples = [vars(sample) for sample in skipped.values()]
        micro, row = self._results.accuracy_after(task.index)
        held_out = self._results.retention_after(task.index + 1)
        self._display.scored(task.index, micro, row, held_out)
        note = {"note": self._note} if self._note else {}
        more: dict[str, Any] = {**self._results.stages[-1].diagnostics(), **note}
        more |= {"retention": held_out} if held_out else {}
        self._add_line(kind="stage", task=task.index, micro=micro, accuracy=row, **more)
        predictions = tested.predictions(self._data.class_of_label())
        is_kept = self._config.evaluation.predictions
        sha256 = self._writer.write_predictions(predictions if is_kept else None)
        self._results.predictions_sha256 = sha256
        self._writer.write_results(self._results.build())
        self._followers.update_page()
        self._report_event("learned", task=task.index)

    def _check_loss(self, losses: Losses, task: Task, progress: TaskProgress, batch: Batch) -> None:
        selection = self._data.train(task)
        step = progress.step
        self._loss_guard.check(losses.total, task=task.index, step=step, batch=batch, of=selection)

    def _report(
        self,
        task: Task,
        epoch: int,
        progress: TaskProgress,
        losses: Losses,
        learning_rate: float,
        clock: StepClock,
    ) -> None:
        """Show a step to people and programs, every ``log_every`` steps and at the last one."""
        step, n_steps = progress.step, self._data.n_steps(task)
        self._report_event("step", task=task.index, step=step)
        if step % self._config.log_every and step != n_steps - 1:
            return
        speed, wait = clock.read()
        loss = float(losses.total)
        report = StepReport(task.index, epoch, step, loss, learning_rate, speed, wait)
        before = sum(map(self._data.expected_steps, self._tasks[: task.index]))
        self._display.step(report, done=before + step + 1, task_steps=n_steps)
        terms = {name: float(term.detach()) for name, term in losses.terms.items()}
        self._add_line(kind="step", **vars(report), terms=terms)

    def _add_line(self, **content: Any) -> None:
        """Add a line to ``metrics.jsonl``."""
        self._writer.metrics.add(**content)
        self._followers.add(len(self._writer.metrics), content)

    def _report_event(self, event: str, **values: int) -> None:
        if self._world.is_main:
            self._events.add(event, **values)

    def _snapshot(
        self,
        task: int,
        progress: TaskProgress,
        tensors: Mapping[str, Tensor],
        optimizer_state: Mapping[str, Tensor],
    ) -> None:
        """Start to write where the run stands: before step ``progress.step`` of ``task``.

        ``tensors`` are those that the task may change. The names of the groups are those on disk.
        """
        skipped = self._batches.skipped_samples()
        is_started = progress.step > 0
        means = self._evaluator.class_means
        groups = {
            "learned": tensors if is_started else {},
            "moments": optimizer_state if is_started else {},
            "class_means": {str(index): mean_CE for index, mean_CE in enumerate(means)},
        }
        state = {
            "identity": self._results.manifest["identity"],
            "results": self._results.state(),
            "skipped_samples": {sample: vars(entry) for sample, entry in skipped.items()},
            "learned_sha256": self._results.learned_sha256,
            "micro_batch": self._micro_batch,
            "train_seconds": progress.seconds,
        }
        self._writer.write_snapshot(task, progress.step, groups, state)
