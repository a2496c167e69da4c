"""The classifier that a run has learned, as a torch module.

Axes: B images · C classes of the stage · K best classes of an image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from pipeline.data.transforms import Transform, build_transform
from pipeline.errors import ConfigError
from pipeline.inference.export_record import is_export
from pipeline.inference.exported import load_export
from pipeline.methods.base import Method
from pipeline.output.learned import LearnedRun, load_run
from pipeline.tasks import Task


class Classifier(nn.Module):
    """The classes of a run after some task, scored for uint8 images that ``preprocess`` made.

    ``classes`` are in class order, the order of the logits. ``task_of_class`` counts tasks from 1:
    the task that taught the class. Evaluation mode, no gradient, on the device that it was loaded
    to.
    """

    def __init__(
        self,
        method: Method,
        tasks: tuple[Task, ...],
        *,
        name: str,
        transform: Transform,
        only: Task | None = None,
    ) -> None:
        super().__init__()
        self.method = method
        self.name = name
        self.stage = len(tasks)
        taught = [(name, task.index + 1) for task in tasks for name in task.names]
        numbers = range(len(taught)) if only is None else only.classes
        self.classes: tuple[str, ...] = tuple(taught[number][0] for number in numbers)
        self.task_of_class: tuple[int, ...] = tuple(taught[number][1] for number in numbers)
        self.transform = transform
        self._tasks = tasks
        self._columns = None if only is None else list(numbers)  # of the logits; None: all
        self.eval()

    @classmethod
    def of(cls, run: LearnedRun) -> Classifier:
        """The classifier of a run that is loaded."""
        transform = build_transform(run.config.data.eval_transform, run.method.clip.image_size)
        return cls(run.method, run.tasks, name=run.config.name, transform=transform)

    def of_task(self, number: int) -> Classifier:
        """The same classifier over the classes of one task alone, which is counted from 1.

        An image then gets one of these classes, as in a test with ``evaluation.label_space=task``.

        Raises:
            ConfigError: no such task was learned.
        """
        if not 1 <= number <= self.stage:
            raise ConfigError(f"task {number} is not learned; choose one from 1 to {self.stage}")
        return Classifier(
            self.method,
            self._tasks,
            name=self.name,
            transform=self.transform,
            only=self._tasks[number - 1],
        )

    @property
    def device(self) -> torch.device:
        """The device of the weights; images on another device are copied to it."""
        return self.method.clip.device

    @property
    def image_size(self) -> int:
        """Side of the images, in pixels."""
        return self.transform.image_size

    def preprocess(self, image: Image.Image) -> Tensor:
        """``image_CHW``, uint8, by the evaluation transform of the run."""
        return self.transform(image)

    @torch.no_grad()
    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Scores ``logits_BC`` of preprocessed uint8 images; the greatest one is the prediction.

        Raises:
            ValueError: the images are not uint8, or have another size.
        """
        size = self.image_size
        if image_BCHW.dtype != torch.uint8 or image_BCHW.shape[1:] != (3, size, size):
            raise ValueError(
                f"images are {image_BCHW.dtype} {list(image_BCHW.shape)}; give torch.uint8 "
                f"[B, 3, {size}, {size}] as preprocess returns it"
            )
        method = self.method
        features = method.clip.encode_image(image_BCHW) if method.needs_features else None
        logits_BC = method.logits(method.encode(image_BCHW, features))
        return logits_BC if self._columns is None else logits_BC[:, self._columns]

    def probabilities(self, image_BCHW: Tensor) -> Tensor:
        """``probability_BC``, float32; each row sums to 1 and ranks the classes as the logits do.

        See :meth:`pipeline.classifiers.base.Classifier.probabilities`.
        """
        return self.method.classifier.probabilities(self(image_BCHW))

    def top(self, image_BCHW: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The ``k`` best classes of each image, best first: ``probability_BK``, ``class_BK``.

        The logits decide the order, also where float32 probabilities are equal.
        """
        logits_BC = self(image_BCHW)
        class_BK = logits_BC.topk(min(k, len(self.classes)), dim=1).indices
        probability_BC = self.method.classifier.probabilities(logits_BC)
        return probability_BC.gather(1, class_BK), class_BK

    def _apply(self, fn: Callable[[Tensor], Tensor], *further: Any) -> Classifier:
        """Refuse to move or convert: the frozen towers are no part of this module's tensors."""
        raise ConfigError("a loaded classifier cannot be moved; give load_classifier its device")


def load_classifier(
    source: str,
    stage: int | None = None,
    *,
    device: str | torch.device = "cpu",
    weights: str | None = None,
) -> Classifier:
    """The classifier that a run has learned after ``stage`` tasks (1, 2, …), or after the last one.

    ``source`` is the folder or URL of the run, or of an export of it. The training data are not
    needed. ``weights`` is the present path of the backbone's weights, if they have moved since the
    run: a file, or a folder for ``local-dir:``. Their hash must be that of the run.

    >>> from PIL import Image
    >>> from pipeline import load_classifier
    >>> classifier = load_classifier("runs/demo/tppt_vt")
    >>> image = classifier.preprocess(Image.open("kite.png"))
    >>> classifier.classes[classifier(image[None]).argmax()]
    'kite'

    Raises:
        ConfigError: the run has not learned so many tasks.
        DataError: ``source`` holds neither a run nor an export, its files were changed, or the
            weights are others.
        WeightsError: the backbone cannot be loaded.
        StorageError: a file cannot be read.
    """
    on = torch.device(device)
    if is_export(source):
        export = load_export(source, stage, device=on, weights=weights)
        name, transform = export.record.name, export.transform
        return Classifier(export.method, export.tasks, name=name, transform=transform)
    return Classifier.of(load_run(source, stage, device=on, weights=weights))
