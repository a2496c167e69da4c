"""The loop: tasks, epochs, steps, a test of every seen class after each task, and snapshots.

Axes: B images of this rank · C classes · E joint width.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Iterator, Set
from dataclasses import dataclass, field

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from pipeline import storage
from pipeline.config import Config, dump_config
from pipeline.data.index import Selection, ShardIndex
from pipeline.data.stream import Batch, ShardSource
from pipeline.distributed.collectives import gather, raise_on_all_ranks
from pipeline.distributed.preemption import StopRequest
from pipeline.distributed.world import World
from pipeline.errors import DivergenceError, Preempted
from pipeline.methods.base import Losses, Method
from pipeline.model.backbone import ImageFeatures
from pipeline.output.metrics_log import MetricsLog
from pipeline.output.ownership import Ownership
from pipeline.output.recovery import Recovered, learned_url, snapshot_folder
from pipeline.output.results import CONFIG_NAME
from pipeline.output.results_builder import ResultsBuilder, Stage
from pipeline.output.snapshots import Snapshot, SnapshotWriter
from pipeline.rng import seed_torch
from pipeline.tasks import Task
from pipeline.training.engine import Engine
from pipeline.training.evaluator import Evaluator
from pipeline.training.features import FrozenFeatures, FrozenStore
from pipeline.training.progress import Display, StepClock, StepReport
from pipeline.training.scoring import TaskScore, anchor_cosine, feature_drift, modality_gap
from pipeline.training.task_data import TaskData

log = logging.getLogger(__name__)


@dataclass
class TaskProgress:
    """How far the training of a task has come."""

    step: int = 0  # optimizer steps done
    seconds: float = 0.0
    tensors: dict[str, Tensor] = field(default_factory=dict)  # learned so far, to begin with
    moments: dict[str, Tensor] = field(default_factory=dict)  # of the optimizer, to begin with
    open_names: Set[str] = frozenset()  # of the tensors that the task may change


class Trainer:
    """Learns the tasks of ``results`` in order with ``method`` and fills ``results``."""

    def __init__(
        self,
        config: Config,
        world: World,
        index: ShardIndex,
        source: ShardSource,
        method: Method,
        results: ResultsBuilder,
        owner: Ownership,
        stop: StopRequest,
    ) -> None:
        self._config = config
        self._world = world
        self._method = method
        self._results = results
        self._tasks = results.tasks
        self._owner = owner
        self._stop = stop
        self._metrics = MetricsLog(storage.join(config.output, "metrics.jsonl"))
        self._note = config.tuning.note if config.tuning else None
        self._display = Display(
            n_tasks=len(self._tasks),
            n_epochs=config.optim.epochs,
            shown=world.is_main,
            note=self._note,
        )
        self._pictures = TaskData(
            config, world, index, source, self._tasks, image_size=method.clip.image_size, stop=stop
        )
        self._frozen = FrozenStore(method.clip, world, config.data.feature_cache)
        self._evaluator = Evaluator(method, world, self._pictures, self._frozen)
        self._snapshots = SnapshotWriter(snapshot_folder(config), owner.raise_if_taken_over)
        self._learned_means: list[Tensor] = []  # per scored task, C×E
        self._learned_sha256: list[str | None] = []  # per learned task
        self._steps_before = 0  # of all tasks before the present one

    def run(self, recovered: Recovered | None = None) -> None:
        """Learn every task, testing all seen classes after each.

        Given ``recovered`` it goes on from there, and ends as if it had not been interrupted.

        Raises:
            Preempted: the run was asked to stop and can go on from a snapshot.
            TakenOverError: a later start of the run writes to its output.
        """
        url = storage.join(self._config.output, CONFIG_NAME)
        self._write(url, dump_config(self._config).encode())
        try:
            with self._display:
                self._learn_tasks(self._restore(recovered) if recovered else TaskProgress())
        except Preempted:
            self._finish_snapshots()
            raise
        finally:
            self._snapshots.close()

    def _learn_tasks(self, progress: TaskProgress) -> None:
        """The tasks that are still to be learned, the first of them from ``progress`` on."""
        self._display.expect(sum(self._pictures.n_steps(task) for task in self._tasks))
        for task in self._tasks[len(self._learned_sha256) :]:
            trainable = self._learn_task(task, progress)
            self._score_seen(task, trainable, progress)
            progress = TaskProgress()
            self._snapshot(task.index + 1, progress, {})
        self._finish_snapshots()

    def _restore(self, recovered: Recovered) -> TaskProgress:
        """Be where the snapshot was taken; returns what the task at hand had come to."""
        snapshot, state = recovered.snapshot, recovered.snapshot.state
        for task, learned in zip(self._tasks, recovered.learned, strict=False):
            seed_torch("task", self._config.seed, task.index)
            self._method.restore_task(task, learned)
            self._steps_before += self._pictures.n_steps(task)
        self._learned_sha256 = list(state["learned_sha256"])
        self._results.restore(state["results"])
        self._pictures.restore_skipped(state["skipped_samples"])
        means = snapshot.group("class_means")
        ordered = (means[str(index)] for index in range(len(means)))
        self._learned_means = [mean_CE.to(self._world.device) for mean_CE in ordered]
        with raise_on_all_ranks():
            if self._world.is_main:
                self._metrics.restore(state["metrics_lines"])
        for index in range(len(self._results.stages)):
            self._display.scored(index, *self._results.accuracy_after(index))
        log.info("going on at task %d, step %d", snapshot.task + 1, snapshot.step + 1)
        return TaskProgress(
            snapshot.step,
            state["train_seconds"],
            snapshot.group("learned"),
            snapshot.group("moments"),
        )

    def _learn_task(self, task: Task, progress: TaskProgress) -> int:
        """Train what ``task`` may change, prove that nothing else did, keep what was learned.

        Returns the number of trainable parameters.
        """
        before = {name: value.clone() for name, value in self._method.state_dict().items()}
        seed_torch("task", self._config.seed, task.index)
        self._method.train()
        self._method.begin_task(task)
        active = {name: p for name, p in self._method.named_parameters() if p.requires_grad}
        if active:
            self._method.load_learned(progress.tensors)
            progress.open_names = active.keys() | (self._method.state_dict().keys() - before.keys())
            self._train(task, progress)
        self._method.eval()
        seed_torch("end of task", self._config.seed, task.index)
        self._method.end_task(task)
        after = self._method.state_dict()
        _check_untouched(before, after, set(active), task)
        sha256 = None
        if active:
            changed = {
                name: value.detach().cpu().contiguous()
                for name, value in after.items()
                if name in active or name not in before
            }
            data = to_safetensors(changed)
            self._write(learned_url(self._config, task.index), data)
            sha256 = hashlib.sha256(data).hexdigest()
        self._learned_sha256.append(sha256)
        self._steps_before += self._pictures.n_steps(task)
        return sum(p.numel() for p in active.values())

    def _train(self, task: Task, progress: TaskProgress) -> None:
        """The steps of one task that are still to be done."""
        n_steps, per_epoch = self._pictures.n_steps(task), self._pictures.steps_per_epoch(task)
        if progress.step and progress.step == n_steps:
            return
        frozen = self._freeze_train(self._pictures.train(task))
        engine = Engine(self._method, self._config, self._world, n_steps)
        engine.restore(progress.moments)
        clock = StepClock(self._config.data.global_batch)
        begun = time.perf_counter() - progress.seconds
        try:
            done_epochs = progress.step // per_epoch if progress.step else 0
            for epoch in range(done_epochs, self._config.optim.epochs):
                start_step = progress.step - epoch * per_epoch
                batches = self._pictures.train_batches(task, epoch, start_step=start_step)
                for batch in self._in_step(batches):
                    losses = self._step(task, progress.step, engine, batch, frozen)
                    clock.count(batch.wait_s)
                    if progress.step % self._config.log_every == 0 or progress.step == n_steps - 1:
                        rate = engine.learning_rate(progress.step)
                        self._report(task, epoch, progress.step, n_steps, losses, rate, clock)
                    progress.step += 1
                    progress.seconds = time.perf_counter() - begun
                    if progress.step % self._config.snapshot.every_steps == 0:
                        self._snapshot(task.index, progress, engine.moments())
            self._snapshot(task.index, progress, {})
        except Preempted:
            self._snapshot(task.index, progress, engine.moments())
            raise
        finally:
            engine.close()

    def _in_step(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, one on every rank before any rank goes on.

        A fault of one rank, or a request to stop, ends all ranks before the same step.
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
        features = self._frozen_of(batch, frozen)
        label_B = self._pictures.classes(batch.label_B)
        losses = engine.step(step, batch.image_BCHW, label_B, features)
        loss = float(losses.total)
        if not math.isfinite(loss):
            self._tolerate(task, step, loss, batch)
        return losses

    def _tolerate(self, task: Task, step: int, loss: float, batch: Batch) -> None:
        """Count a step whose loss is not finite; every rank has the same loss.

        Raises:
            DivergenceError: such steps are not tolerated, or no more of them.
        """
        selection = self._pictures.train(task)
        row_of = {int(sample): row for row, sample in enumerate(selection.sample_S)}
        keys = [selection.keys[row_of[int(sample)]] for sample in gather(batch.sample_B)]
        shown = ", ".join(keys[:8]) + (f", … ({len(keys)} in all)" if len(keys) > 8 else "")
        problem = f"task {task.index + 1}, step {step + 1}: the loss is {loss} on samples {shown}"
        skipped, optim = self._results.skipped_steps, self._config.optim
        skipped.append({"task": task.index, "step": step, "loss": str(loss), "samples": keys})
        if optim.on_nonfinite_loss == "fail":
            raise DivergenceError(
                f"{problem}; lower optim.learning_rate, set optim.gradient_clipping, or set "
                "optim.on_nonfinite_loss to skip"
            )
        if len(skipped) > optim.nonfinite_loss_budget:
            raise DivergenceError(
                f"{problem}; {len(skipped)} such steps exceed optim.nonfinite_loss_budget"
            )
        log.warning("%s: step skipped", problem)

    def _report(
        self,
        task: Task,
        epoch: int,
        step: int,
        n_steps: int,
        losses: Losses,
        learning_rate: float,
        clock: StepClock,
    ) -> None:
        """Tell people and programs where training stands."""
        speed, wait = clock.read()
        loss = float(losses.total)
        report = StepReport(task.index, epoch, step, loss, learning_rate, speed, wait)
        self._display.step(report, done=self._steps_before + step + 1, task_steps=n_steps)
        terms = {name: float(term.detach()) for name, term in losses.terms.items()}
        self._metrics.add(kind="step", **vars(report), terms=terms)

    def _snapshot(self, task: int, progress: TaskProgress, moments: dict[str, Tensor]) -> None:
        """Begin to write where the run stands: before step ``progress.step`` of ``task``."""
        skipped = self._pictures.skipped_samples()
        begun, now = progress.step > 0, self._method.state_dict()
        groups = {
            "learned": {name: now[name] for name in progress.open_names} if begun else {},
            "moments": moments if begun else {},
            "class_means": {str(index): mean for index, mean in enumerate(self._learned_means)},
        }
        state = {
            "identity": self._results.manifest["identity"],
            "results": self._results.state(),
            "skipped_samples": {sample: vars(entry) for sample, entry in skipped.items()},
            "learned_sha256": self._learned_sha256,
            "train_seconds": progress.seconds,
            "metrics_lines": len(self._metrics),
        }
        with raise_on_all_ranks():
            if self._world.is_main:
                snapshot = Snapshot.take(task, progress.step, groups, state)
                self._snapshots.write(snapshot, beside=self._metrics.contents())

    def _finish_snapshots(self) -> None:
        """Return on every rank once rank 0 has written everything."""
        with raise_on_all_ranks():
            self._snapshots.wait()

    def _score_seen(self, task: Task, trainable: int, progress: TaskProgress) -> None:
        """Test every class seen so far and add the stage to the results."""
        started = time.perf_counter()
        seen = self._tasks[: task.index + 1]
        scores = [self._evaluator.score(old) for old in seen]
        anchor_CE = self._method.tested_CE
        self._learned_means.append(scores[-1].class_mean_CE)
        images = progress.step * self._config.data.global_batch
        stage = Stage(
            correct=tuple(score.correct for score in scores),
            images=tuple(score.images for score in scores),
            anchor_cosine=anchor_cosine(anchor_CE),
            modality_gap=modality_gap(scores, anchor_CE),
            feature_drift=self._drift(scores[:-1]),
            trainable_parameters=trainable,
            images_per_second=images / progress.seconds if images else None,
            train_seconds=progress.seconds,
            test_seconds=time.perf_counter() - started,
        )
        self._results.stages.append(stage)
        self._results.skipped_samples = [vars(s) for s in self._pictures.skipped_samples().values()]
        micro, row = self._results.accuracy_after(task.index)
        self._display.scored(task.index, micro, row)
        told = {"note": self._note} if self._note else {}
        self._metrics.add(kind="stage", task=task.index, micro=micro, accuracy=row, **told)
        with raise_on_all_ranks():
            if self._world.is_main:
                self._snapshots.wait()  # results without the snapshot behind them are no use
                self._owner.raise_if_taken_over()
                self._metrics.flush()
                self._results.build().write(self._config.output)

    def _drift(self, old_scores: list[TaskScore]) -> float | None:
        if not old_scores:
            return None
        now_CE = torch.cat([score.class_mean_CE for score in old_scores])
        return feature_drift(now_CE, torch.cat(self._learned_means[: len(old_scores)]))

    def _freeze_train(self, selection: Selection) -> FrozenFeatures | None:
        """Frozen features of a task's images, unless augmentation makes them new each time."""
        if not self._method.reads_frozen or self._pictures.train_transform.is_random:
            return None
        transform = self._pictures.train_transform
        return self._frozen.get(
            selection, transform, lambda: self._pictures.whole(selection, transform)
        )

    def _frozen_of(self, batch: Batch, frozen: FrozenFeatures | None) -> ImageFeatures | None:
        if frozen:
            return frozen.of(batch.sample_B)
        if not self._method.reads_frozen:
            return None
        parts = batch.image_BCHW.split(self._config.engine.micro_batch)
        with torch.no_grad():
            columns = zip(*map(self._method.clip.encode_image, parts), strict=True)
            return ImageFeatures(*map(torch.cat, columns))

    def _write(self, url: str, data: bytes) -> None:
        """Rank 0 writes for all; if it cannot, or must not, no other waits for it."""
        with raise_on_all_ranks():
            if self._world.is_main:
                self._owner.raise_if_taken_over()
                storage.write_atomically(url, data)


def _check_untouched(
    before: dict[str, Tensor], after: dict[str, Tensor], active: set[str], task: Task
) -> None:
    """Every tensor that the task had no right to change is bit-equal to what it was."""
    for name, value in before.items():
        assert name in active or torch.equal(value, after[name]), (
            f"task {task.index + 1} changed {name}, which belongs to an earlier task"
        )
