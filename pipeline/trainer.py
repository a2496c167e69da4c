"""The loop: tasks, epochs, steps, and a test of every seen class after each task.

Axes: B images of this rank · C classes · E joint width.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from pipeline import storage
from pipeline.comm import World, faults_shared, gather_objects, sum_over_ranks
from pipeline.config import Config, dump_config
from pipeline.data.index import Selection, ShardIndex
from pipeline.data.plan import steps_per_epoch
from pipeline.data.stream import Batch, ShardSource, eval_stream, train_stream
from pipeline.data.transforms import Transform, build_transform
from pipeline.engine import Engine
from pipeline.errors import DivergenceError
from pipeline.frozen import FrozenFeatures, FrozenStore
from pipeline.log import MetricsWriter
from pipeline.methods.base import Losses, Method
from pipeline.model.backbone import ImageFeatures
from pipeline.progress import Display, StepReport
from pipeline.results import Results, Stage
from pipeline.scoring import TaskScore, anchor_cosine, feature_drift, modality_gap, score_task
from pipeline.tasks import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Learned:
    """What learning one task cost."""

    trainable_parameters: int
    seconds: float
    images: int  # over all ranks and epochs


class Trainer:
    """Learns ``tasks`` in order with ``method`` and fills ``results``."""

    def __init__(
        self,
        config: Config,
        world: World,
        index: ShardIndex,
        source: ShardSource,
        method: Method,
        results: Results,
    ) -> None:
        self._config = config
        self._world = world
        self._index = index
        self._source = source
        self._method = method
        self._results = results
        self._tasks = results.tasks
        self._metrics = MetricsWriter(storage.join(config.output, "metrics.jsonl"))
        self._display = Display(
            n_tasks=len(self._tasks), n_epochs=config.optim.epochs, shown=world.is_main
        )
        size = method.clip.image_size
        self._train_transform = build_transform(config.data.train_transform, size)
        self._eval_transform = build_transform(config.data.eval_transform, size)
        self._class_of_label = torch.full((len(index.class_names),), -1)
        self._frozen = FrozenStore(method.clip, world, config.data.feature_cache)
        self._learned_means: dict[int, Tensor] = {}
        self._steps_done = 0

    def run(self) -> None:
        """Learn every task, testing all seen classes after each."""
        self._write("config.yaml", dump_config(self._config).encode())
        with self._display:
            self._display.expect(sum(self._task_steps(task) for task in self._tasks))
            for task in self._tasks:
                learned = self._learn_task(task)
                self._score_seen(task, learned)

    def _learn_task(self, task: Task) -> Learned:
        """Train what ``task`` may change; prove that nothing else did; keep what was learned."""
        before = {name: value.clone() for name, value in self._method.state_dict().items()}
        self._class_of_label[list(task.labels)] = torch.arange(task.first, task.last)
        self._method.train()
        self._method.begin_task(task)
        active = {name: p for name, p in self._method.named_parameters() if p.requires_grad}
        started = time.perf_counter()
        images = self._train(task) if active else 0
        seconds = time.perf_counter() - started
        self._method.eval()
        self._method.end_task(task)
        after = self._method.state_dict()
        _check_untouched(before, after, set(active), task)
        if active:
            changed = {
                name: value.detach().cpu().contiguous()
                for name, value in after.items()
                if name in active or name not in before
            }
            self._write(f"tasks/task-{task.index:03d}.safetensors", to_safetensors(changed))
        return Learned(sum(p.numel() for p in active.values()), seconds, images)

    def _train(self, task: Task) -> int:
        """All epochs of one task; the number of images seen over all ranks."""
        config = self._config
        selection = self._select_train(task)
        n_steps = self._task_steps(task)
        frozen = self._freeze_train(selection)
        engine = Engine(self._method, config, self._world, n_steps)
        clock = _StepClock(config.data.global_batch)
        step = 0
        for epoch in range(config.optim.epochs):
            for batch in _in_step(self._train_batches(selection, task, epoch)):
                features = self._frozen_of(batch, frozen)
                losses = engine.step(step, batch.image_BCHW, self._classes(batch.label_B), features)
                clock.count(batch.wait_s)
                self._steps_done += 1
                if step % config.log_every == 0 or step == n_steps - 1:
                    rate = engine.learning_rate(step)
                    self._report(task, epoch, step, n_steps, losses, rate, clock)
                step += 1
        engine.close()
        return n_steps * config.data.global_batch

    def _report(
        self,
        task: Task,
        epoch: int,
        step: int,
        n_steps: int,
        losses: Losses,
        learning_rate: float,
        clock: _StepClock,
    ) -> None:
        """Tell people and programs where training stands; stop if the loss is no number."""
        loss = float(losses.total.detach())
        if not math.isfinite(loss):
            raise DivergenceError(
                f"task {task.index + 1}, step {step + 1}: the loss is {loss}; "
                "lower optim.learning_rate or set optim.gradient_clipping"
            )
        speed, wait = clock.read()
        report = StepReport(task.index, epoch, step, loss, learning_rate, speed, wait)
        self._display.step(report, done=self._steps_done, task_steps=n_steps)
        terms = {name: float(term.detach()) for name, term in losses.terms.items()}
        self._metrics.add(kind="step", **vars(report), terms=terms)

    def _score_seen(self, task: Task, learned: Learned) -> None:
        """Test every class seen so far and add the stage to the results."""
        started = time.perf_counter()
        seen = self._tasks[: task.index + 1]
        scores = [self._score(old) for old in seen]
        anchor_CE = self._method.tested_CE
        self._learned_means[task.index] = scores[-1].class_mean_CE
        stage = Stage(
            correct=tuple(score.correct for score in scores),
            images=tuple(score.images for score in scores),
            anchor_cosine=anchor_cosine(anchor_CE),
            modality_gap=modality_gap(scores, anchor_CE),
            feature_drift=self._drift(scores[:-1]),
            trainable_parameters=learned.trainable_parameters,
            images_per_second=learned.images / learned.seconds if learned.images else None,
            train_seconds=learned.seconds,
            test_seconds=time.perf_counter() - started,
        )
        self._results.stages.append(stage)
        skipped = gather_objects([vars(sample) for sample in self._source.skipped.values()])
        self._results.skipped_samples = [sample for share in skipped for sample in share]
        row = [score.accuracy for score in scores]
        micro = sum(stage.correct) / sum(stage.images)
        self._display.scored(task.index, micro, row)
        self._metrics.add(kind="stage", task=task.index, micro=micro, accuracy=row)
        with faults_shared():
            if self._world.is_main:
                self._metrics.flush()
                self._results.write(self._config.output)

    def _score(self, task: Task) -> TaskScore:
        selection = self._select(self._config.evaluation.split, task)
        classes = range(task.first, task.last)
        score = score_task(self._method, self._embedded(selection), classes=classes)
        wanted = len(selection) - self._n_unusable(selection)
        assert score.images == wanted, (
            f"task {task.index + 1}: {score.images} images were tested instead of {wanted}"
        )
        return score

    @torch.no_grad()
    def _embedded(self, selection: Selection) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's share of a test as ``(image_BE, label_B)``."""
        method, frozen = self._method, None
        if method.reads_frozen:
            frozen = self._frozen_features(selection, self._eval_transform)
        if not method.reads_images:
            features, label_B = frozen.share(self._world.rank, self._world.world_size)
            yield method.embed(None, features), self._classes(label_B)
            return
        for batch in self._whole(selection, self._eval_transform):
            features = frozen.of(batch.sample_B) if frozen else None
            yield method.embed(batch.image_BCHW, features), self._classes(batch.label_B)

    def _n_unusable(self, selection: Selection) -> int:
        """How many samples of a test were skipped, over all ranks."""
        if not self._method.reads_images:
            frozen = self._frozen_features(selection, self._eval_transform)
            return len(selection) - len(frozen.sample_S)
        skipped = {*selection.sample_S.tolist()} & self._source.skipped.keys()
        return int(sum_over_ranks(torch.tensor(len(skipped))))

    def _drift(self, old_scores: list[TaskScore]) -> float | None:
        if not old_scores:
            return None
        now_CE = torch.cat([score.class_mean_CE for score in old_scores])
        learned = [self._learned_means[index] for index in range(len(old_scores))]
        return feature_drift(now_CE, torch.cat(learned))

    def _freeze_train(self, selection: Selection) -> FrozenFeatures | None:
        """Frozen features of a task's images, unless augmentation makes them new each time."""
        if not self._method.reads_frozen or self._train_transform.is_random:
            return None
        return self._frozen_features(selection, self._train_transform)

    def _frozen_of(self, batch: Batch, frozen: FrozenFeatures | None) -> ImageFeatures | None:
        if frozen:
            return frozen.of(batch.sample_B)
        if not self._method.reads_frozen:
            return None
        with torch.no_grad():
            return self._method.clip.encode_image(batch.image_BCHW)

    def _frozen_features(self, selection: Selection, transform: Transform) -> FrozenFeatures:
        return self._frozen.get(selection, transform, lambda: self._whole(selection, transform))

    def _train_batches(self, selection: Selection, task: Task, epoch: int) -> Iterator[Batch]:
        data = self._config.data
        return train_stream(
            self._source,
            selection,
            seed=self._config.seed,
            task=task.index,
            epoch=epoch,
            global_batch=data.global_batch,
            tail=data.tail,
            transform=self._train_transform,
            rank=self._world.rank,
            world_size=self._world.world_size,
            workers=data.workers,
            upcoming=self._upcoming(task),
        )

    def _upcoming(self, task: Task) -> list[Selection]:
        """What will be read after a task's training: its test, then the next task's images."""
        following = self._tasks[task.index + 1 : task.index + 2]
        test = self._select(self._config.evaluation.split, task)
        return [test, *(self._select_train(after) for after in following)]

    def _whole(self, selection: Selection, transform: Transform) -> Iterator[Batch]:
        """This rank's share of a selection, each sample once."""
        data = self._config.data
        return eval_stream(
            self._source,
            selection,
            batch_size=data.eval_batch,
            transform=transform,
            rank=self._world.rank,
            world_size=self._world.world_size,
            workers=data.workers,
        )

    def _select(self, split: str, task: Task) -> Selection:
        fraction = self._config.data.validation_fraction
        return self._index.select(split, task.labels, validation_fraction=fraction)

    def _select_train(self, task: Task) -> Selection:
        return self._select("fit" if self._config.data.validation_fraction else "train", task)

    def _task_steps(self, task: Task) -> int:
        data = self._config.data
        per_epoch = steps_per_epoch(len(self._select_train(task)), data.global_batch, data.tail)
        return per_epoch * self._config.optim.epochs

    def _classes(self, label_B: Tensor) -> Tensor:
        """Class numbers, in class order and on the device, of the index's labels."""
        return self._class_of_label[label_B].to(self._world.device)

    def _write(self, name: str, data: bytes) -> None:
        """Rank 0 writes for all; if it cannot, no other waits for it."""
        with faults_shared():
            if self._world.is_main:
                storage.write_atomically(storage.join(self._config.output, name), data)


def _in_step(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches, one on every rank before any rank goes on; a fault of one ends all."""
    while True:
        with faults_shared():
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


class _StepClock:
    """Images per second and the share of waiting since it was last read."""

    def __init__(self, global_batch: int) -> None:
        self._global_batch = global_batch
        self._reset()

    def count(self, wait_s: float) -> None:
        self._steps += 1
        self._wait_s += wait_s

    def read(self) -> tuple[float, float]:
        elapsed = time.perf_counter() - self._started
        speed, wait = self._steps * self._global_batch / elapsed, min(1.0, self._wait_s / elapsed)
        self._reset()
        return speed, wait

    def _reset(self) -> None:
        self._started, self._steps, self._wait_s = time.perf_counter(), 0, 0.0


def _check_untouched(
    before: dict[str, Tensor], after: dict[str, Tensor], active: set[str], task: Task
) -> None:
    """Every tensor that the task had no right to change is bit-equal to what it was."""
    for name, value in before.items():
        assert name in active or torch.equal(value, after[name]), (
            f"task {task.index + 1} changed {name}, which belongs to an earlier task"
        )
