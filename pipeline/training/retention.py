"""What is not learned, tested before the first task and after each: held-out sets, future tasks.

Held-out sets show what adaptation costs the generality of CLIP, future tasks what is transferred to
them. An image is embedded by the method as it is
now, and gets the class whose text anchor is nearest. The anchors are those of the frozen text
tower, of the templates of the run: a learned text context belongs to the classes that it was
learned with. Before the first task the image tower is frozen too, so that stage is plain CLIP.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline import storage
from pipeline.config import MethodConfig
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


class ZeroShotTest:
    """Tests tasks of ``run`` by the names of their classes alone, with the images of ``method``.

    An image gets one of the classes of its own task.
    """

    def __init__(self, run: Run, world: World, method: Method, batches: TaskBatches) -> None:
        config, clip = run.config, method.clip
        self.run = run
        zero_shot = build_method(MethodConfig(name="zeroshot"), MethodContext.of(config, clip))
        for task in run.tasks:
            zero_shot.restore_task(task, {})
        zero_shot.eval()

        def tested(embedding: Method) -> tuple[Encoder, Evaluator]:
            features, first_layer = config.data.feature_cache, method.inputs.first_layer
            store = FrozenStore(clip, world, features, first_layer=first_layer)
            encoder = Encoder(embedding, world, batches, store, batch=config.data.eval_batch)
            return encoder, Evaluator(zero_shot, run.data, encoder, label_space="task")

        self._frozen, self._adapted = tested(zero_shot), tested(method)

    def accuracies(self, tasks: Sequence[Task], *, is_adapted: bool) -> list[float]:
        """Of each task, in [0, 1]: of the method as it is now, or of the frozen image tower."""
        encoder, evaluator = self._adapted if is_adapted else self._frozen
        encoder.begin_test()
        scores = map(evaluator.score, tasks)
        return [score.correct / score.images for score in scores]


class Retention:
    """The tests of what is not learned: held-out sets, and future tasks if ``future`` is given."""

    def __init__(
        self, held_out: Sequence[ZeroShotTest] = (), future: ZeroShotTest | None = None
    ) -> None:
        self._held_out = held_out
        self._future = future

    def test(self, results: ResultsBuilder, *, n_learned: int) -> None:
        """Add the accuracies after so many tasks to ``results``; every rank asks."""
        is_adapted = n_learned > 0
        for test in self._held_out:
            (task,), index = test.run.tasks, test.run.index
            (accuracy,) = test.accuracies([task], is_adapted=is_adapted)
            results.add_retention(
                index=storage.redact(index.url),
                sha256=index.sha256,
                classes=len(task.names),
                images=len(test.run.data.test(task)),
                n_learned=n_learned,
                accuracy=accuracy,
            )
        if self._future:
            future = self._future.run.tasks[n_learned:]
            accuracies = self._future.accuracies(future, is_adapted=is_adapted)
            results.add_future(n_learned, accuracies)
