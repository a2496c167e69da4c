"""Zero-shot retention: data sets that are never learned, tested after each task.

They show what adaptation costs the generality of CLIP. An image is embedded by the method as it is
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
from pipeline.training.batches import TaskBatches
from pipeline.training.checked_run import Run
from pipeline.training.encoder import Encoder
from pipeline.training.evaluator import Evaluator
from pipeline.training.features import FrozenStore


class ZeroShotTest:
    """Tests the tasks of ``run`` by the names of their classes, with the images of ``method``."""

    def __init__(self, run: Run, world: World, method: Method, batches: TaskBatches) -> None:
        config, clip = run.config, method.clip
        self.run = run
        zero_shot = build_method(MethodConfig(name="zeroshot"), MethodContext.of(config, clip))
        for task in run.tasks:
            zero_shot.restore_task(task, {})
        zero_shot.eval()

        def evaluator(embedding: Method) -> Evaluator:
            features, first_layer = config.data.feature_cache, method.inputs.first_layer
            store = FrozenStore(clip, world, features, first_layer=first_layer)
            encoder = Encoder(embedding, world, batches, store, batch=config.data.eval_batch)
            return Evaluator(zero_shot, run.data, encoder)

        self._frozen, self._adapted = evaluator(zero_shot), evaluator(method)

    def accuracy(self, *, is_adapted: bool) -> float:
        """Over all images, in [0, 1]; of the frozen image tower or of the method as it is now."""
        evaluator = self._adapted if is_adapted else self._frozen
        scores = evaluator.test(self.run.tasks).scores
        return sum(score.correct for score in scores) / sum(score.images for score in scores)


class Retention:
    """The tests of all held-out sets; every rank asks."""

    def __init__(self, tests: Sequence[ZeroShotTest] = ()) -> None:
        self._tests = tests

    def test(self, results: ResultsBuilder, *, n_learned: int) -> None:
        """Add the accuracy on each set after so many tasks to ``results``."""
        for test in self._tests:
            task, index = test.run.tasks[0], test.run.index
            results.add_retention(
                index=storage.redact(index.url),
                sha256=index.sha256,
                classes=len(task.names),
                images=len(test.run.data.test(task)),
                n_learned=n_learned,
                accuracy=test.accuracy(is_adapted=n_learned > 0),
            )
