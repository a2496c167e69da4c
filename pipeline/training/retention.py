"""What is not learned, tested before the first task and after each: held-out sets, future tasks.

Held-out sets show what adaptation costs the generality of CLIP, future tasks what is transferred to
them. An image is embedded by the method as it is now, and gets the class whose text anchor is
nearest. The anchors are those of the frozen text tower, with the templates of the index or of the
held-out set: a learned text context belongs to the classes that it was learned with. Before the
first task the image tower is frozen too, so that this stage is plain CLIP.

With ``evaluation.label_space=all`` an image of a future task also competes with the learned
classes, see :class:`pipeline.training.label_space.AllClasses`.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline import storage
from pipeline.config import MethodConfig
from pipeline.data.stream import SkippedSample
from pipeline.distributed.world import World
from pipeline.methods import build_method
from pipeline.methods.base import Method, MethodContext
from pipeline.output.results_builder import ResultsBuilder
from pipeline.tasks import Task
from pipeline.training.batches import TaskBatches
from pipeline.training.checked_run import Run
from pipeline.training.encoder import Encoder
from pipeline.training.evaluator import Evaluator
from pipeline.training.features import FrozenStore
from pipeline.training.label_space import SeenClasses, TaskClasses
from pipeline.training.scoring import TaskScore


class ZeroShotTest:
    """Tests tasks of ``run`` by the names of their classes alone, with the images of ``method``.

    An image gets one of the classes of ``run``; with ``label_space=task``, of its own task.
    """

    def __init__(self, run: Run, world: World, method: Method, batches: TaskBatches) -> None:
        self.run = run
        self._world = world
        self._batches = batches
        self._first_layer = method.inputs.first_layer
        is_by_task = run.config.evaluation.label_space == "task"
        context = MethodContext.of(run.config, method.clip)
        self._zero_shot = build_method(MethodConfig(name="zeroshot"), context).eval()
        for task in run.tasks:
            self._zero_shot.restore_task(task, {})
        self._label_space = (TaskClasses if is_by_task else SeenClasses)(self._zero_shot)
        self._adapted = self._evaluator(method)

    def scores(self, tasks: Sequence[Task], *, is_adapted: bool) -> list[TaskScore]:
        """Of each task, by the method as it is now or by the frozen image tower."""
        # The features of the frozen tower are not kept: they are needed once.
        encoder, evaluator = self._adapted if is_adapted else self._evaluator(self._zero_shot)
        encoder.begin_test()
        return list(map(evaluator.score, tasks))

    def skipped_samples(self) -> list[SkippedSample]:
        """The images that could not be used so far, over all ranks; a collective call."""
        return list(self._batches.skipped_samples().values())

    def _evaluator(self, embedding: Method) -> tuple[Encoder, Evaluator]:
        """Tests the images as ``embedding`` embeds them."""
        data, clip = self.run.config.data, embedding.clip
        store = FrozenStore(clip, self._world, data.feature_cache, first_layer=self._first_layer)
        encoder = Encoder(embedding, self._world, self._batches, store, batch=data.eval_batch)
        space = self._label_space
        return encoder, Evaluator(self._zero_shot, self.run.data, encoder, label_space=space)


class Retention:
    """The tests of what is not learned: held-out sets, and future tasks if ``future`` is given."""

    def __init__(
        self, held_out: Sequence[ZeroShotTest] = (), future: ZeroShotTest | None = None
    ) -> None:
        self._held_out = held_out
        self._future = future

    def test(self, results: ResultsBuilder, learned: Evaluator, *, n_learned: int) -> None:
        """Add the accuracies after ``n_learned`` tasks to ``results``; a collective call.

        ``learned`` tests by the method as it is now.
        """
        is_adapted = n_learned > 0
        for test in self._held_out:
            (task,), index = test.run.tasks, test.run.index
            (score,) = test.scores([task], is_adapted=is_adapted)
            results.add_retention(
                index=storage.redact(index.url),
                sha256=index.sha256,
                classes=len(task.names),
                images=score.images,
                n_learned=n_learned,
                accuracy=score.accuracy,
                templates=test.run.own_templates,
                skipped=[vars(sample) for sample in test.skipped_samples()],
            )
        if self._future:
            run = self._future.run
            future = run.tasks[n_learned:]
            if is_adapted and run.config.evaluation.label_space == "all":
                scores = list(map(learned.score, future))
            else:
                scores = self._future.scores(future, is_adapted=is_adapted)
            results.add_future(n_learned, [score.accuracy for score in scores])
