"""The contract of a method: it embeds images and returns losses; it never steps, logs or loops.

In each task the trainer calls, in this order:

1. ``begin_task``: the method adds parameters; those that require a gradient are trained.
2. ``fit("start", images)``, if ``"start" in method.fits``.
3. per optimizer step, if anything is trained: ``embed`` for each part of the batch on each rank,
   then ``losses`` and the classifier's ``loss`` on the gathered embeddings of the global batch.
4. ``fit("end", images)``, if ``"end" in method.fits``.
5. ``end_task``; from then on ``logits`` scores all classes seen so far.

Axes: B images of this rank · N images of the global batch · C classes seen so far · E embedding
width. Classes are numbered in class order, see :class:`pipeline.tasks.Task`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import torch
from pydantic import model_validator
from torch import Tensor, nn

from pipeline.classifiers import (
    ClassifierConfig,
    ClassifierContext,
    Embedded,
    EmbeddedImages,
    Moment,
    build_classifier,
    shared_options,
)
from pipeline.config import Config
from pipeline.errors import ConfigError, DataError
from pipeline.model.anchors import Anchors
from pipeline.model.backbone import FrozenClip, ImageFeatures
from pipeline.model.prompt_groups import PromptGroup
from pipeline.settings_file import Section
from pipeline.tasks import Task
from pipeline.templates import TextConfig

T = TypeVar("T")


class Losses(NamedTuple):
    """The loss of one step: ``total`` and the weighted terms that it is the sum of."""

    total: Tensor
    terms: dict[str, Tensor]

    @classmethod
    def of(cls, terms: dict[str, Tensor]) -> Losses:
        """The sum of one term or more, added in their order."""
        first, *others = terms.values()
        return cls(sum(others, start=first), terms)

    def plus(self, name: str, term: Tensor | None) -> Losses:
        """The losses with one more term, or the same ones if it is None."""
        if term is None:
            return self
        return Losses(self.total + term, {**self.terms, name: term})


class Inputs(NamedTuple):
    """The arguments that :meth:`Method.embed` reads; the others are None."""

    images: bool  # pixels; without them no image is decoded more than once in a run
    features: bool  # features of the frozen image tower, computed once per image
    # The first block with learned tensors: embed also takes the tokens in front of it, that is
    # :meth:`FrozenClip.lower_blocks`, in place of pixels.
    first_layer: int = 0


class MethodOptions(Section):
    """Options of every method."""

    classifier: ClassifierConfig = ClassifierConfig()  # from embeddings to scores

    @model_validator(mode="before")
    @classmethod
    def _keep_own_defaults(cls, given: Any) -> Any:
        """A section that gives one value keeps the other defaults of this method.

        Without this, ``diversity.weight`` alone would set the other values of ``diversity`` to the
        defaults of the section, which may differ from those of the method. A classifier
        keeps the other options too; another one those that it has.
        """
        if not isinstance(given, Mapping):
            return given
        complete = dict(given)
        for name, field in cls.model_fields.items():
            default, value = field.default, complete.get(name)
            if isinstance(default, Section) and isinstance(value, Mapping):
                own = {key: getattr(default, key) for key in default.model_fields_set}
                complete[name] = {**own, **value}
                options = value.get("options", {})
                if isinstance(default, ClassifierConfig) and isinstance(options, Mapping):
                    kept = shared_options(complete[name].get("name"), default.options)
                    complete[name]["options"] = {**kept, **options}
        return complete


@dataclass(frozen=True)
class MethodContext:
    """The parts of a run that a method may know."""

    clip: FrozenClip
    # Task → the prompts of each of its new classes, the training one first.
    prompts_of: Callable[[Task], Sequence[Sequence[str]]]
    ensemble: bool  # fixed anchors are tested with the mean over all prompts
    seed: int

    @classmethod
    def of(cls, config: Config, clip: FrozenClip) -> MethodContext:
        """The context of the run that ``config`` describes."""
        return cls(clip, partial(task_prompts, config.text), config.text.ensemble, config.seed)


def given(value: T | None) -> T:
    """An input of :meth:`Method.embed` that :meth:`Method.inputs_of` names."""
    assert value is not None, "embed reads an input that inputs_of does not name"
    return value


def task_prompts(text: TextConfig, task: Task) -> list[list[str]]:
    """The prompts of each new class of ``task``, the one that training uses first.

    They are from the templates of the index that the class is in first.
    """
    templates = text.templates_of(task.group)
    return [[each.replace("{}", name) for each in templates] for name in task.names]


class Method(nn.Module):
    """One continual-learning rule: the tensors that each task trains, and the change between tasks.

    After :meth:`begin_task` the parameters that require a gradient are trained. Buffers may change
    in any task. Every other tensor stays bit-equal. Each task stores the tensors that are new or
    may have changed; restored in order they give the method as it was after any task.
    """

    Options: ClassVar[type[MethodOptions]] = MethodOptions
    # Whose training images a task shows: its own, or also those of all earlier tasks.
    training_images: ClassVar[Literal["task", "seen"]] = "task"
    # Whether a task may have further images of known classes, see ``task.known``.
    takes_known_classes: ClassVar[bool] = False
    anchors: Anchors | None  # the text embeddings of the classes, if it has any
    task: Task  # the present or the last one

    def __init__(self, context: MethodContext, options: Any) -> None:
        super().__init__()
        self.context = context
        self.clip = context.clip
        self.options = options
        # This order must not change: gradients are summed in the order of the tensors.
        self.build_adaptation()
        self.anchors = self.build_anchors()
        self.classifier = build_classifier(
            options.classifier,
            ClassifierContext(context.clip, self.anchors, self.embedding_width, context.seed),
        )

    def build_adaptation(self) -> None:
        """Create the modules that adapt the towers, such as prompts; none by default."""

    def build_anchors(self) -> Anchors | None:
        """The text embeddings of the classes; None for a method that reads no class name."""
        return None

    @classmethod
    def check(cls, options: Any, tasks: Sequence[Task]) -> str | None:
        """The reason why these options cannot learn ``tasks``, with its remedy, or None."""
        return None

    @classmethod
    def context_tokens(cls, options: Any) -> int:
        """Learned tokens before ``<name>.`` in the text tower; 0 if no prompt is learned there."""
        return 0

    @classmethod
    def inputs_of(cls, options: Any) -> Inputs:
        """The inputs of :meth:`embed` under these options."""
        return Inputs(images=True, features=False)

    @property
    def inputs(self) -> Inputs:
        """The inputs of :meth:`embed`."""
        return self.inputs_of(self.options)

    @property
    def needs_features(self) -> bool:
        """Whether the method or its classifier reads features of the frozen image tower."""
        return self.inputs.features or self.classifier.reads_features

    @property
    def embedding_width(self) -> int:
        """E, the width of the embeddings."""
        return self.clip.joint_width

    @property
    def n_prompt_tokens(self) -> int:
        """Prompt tokens beside the tokens of an image, for the estimate of memory."""
        return 0

    @property
    def fits(self) -> frozenset[Moment]:
        """The moments of a task at which :meth:`fit` reads all of its training images."""
        return self.classifier.fits

    def begin_task(self, task: Task) -> None:
        """Prepare for ``task``: extend the label space, choose the trained tensors."""
        self.task = task
        if self.anchors is not None:
            self.anchors.begin_task(task)
        self.classifier.begin_task(task)
        self.to(self.clip.device)

    def fit(self, moment: Moment, images: EmbeddedImages) -> None:
        """Read the task's training images, embedded with the tensors as they are now.

        Every rank reads the same images in the same order, so that sums have the same bits on any
        number of ranks.
        """
        self.classifier.fit(moment, images)

    def embed(self, image_BCHW: Tensor | None, features: ImageFeatures | None) -> Embedded:
        """Embeddings of the images; each depends on its own image alone.

        ``image_BCHW`` is uint8, or has the tokens of ``Inputs.first_layer``. ``Embedded.terms`` are
        loss terms of each image; they are gathered over ranks with their gradient. Nothing may be
        stored for :meth:`losses` in another way: it sees the images of all ranks, and with
        ``engine.recompute`` images are embedded twice.
        """
        raise NotImplementedError

    def encode(self, image_BCHW: Tensor | None, features: ImageFeatures | None) -> Embedded:
        """The embedded images with the features beside them, for the classifier."""
        inputs = self.inputs
        embedded = self.embed(
            image_BCHW if inputs.images else None, features if inputs.features else None
        )
        return embedded._replace(features=features)

    def exported_prompts(self) -> list[PromptGroup]:
        """The prompts with which the frozen image tower embeds; none for that tower alone.

        An export stores them in place of the method.

        Raises:
            ConfigError: :meth:`embed` is more than that, or the method does not say.
        """
        raise ConfigError(
            f"the method {type(self).__name__} gives no visual prompts for an export; add its "
            "method exported_prompts(), or export the program alone with --torch-export"
        )

    def losses(self, embedded: Embedded, label_N: Tensor) -> Losses:
        """Loss terms of one global batch; ``label_N`` are class numbers.

        The default has no term of its own: only the classifier is trained.
        """
        return Losses(embedded.embedding_BE.new_zeros(()), {})

    def forward(
        self, image_BCHW: Tensor | None, label_B: Tensor, features: ImageFeatures | None = None
    ) -> Losses:
        """The training loss of one batch in one graph; the engine computes the same in parts."""
        embedded = self.embed(image_BCHW, features)
        losses = self.losses(embedded, label_B)
        return losses.plus("classifier", self.classifier.loss(embedded, label_B))

    def end_task(self, task: Task) -> None:
        """Consolidate ``task`` and prepare predictions; also called when a task is restored."""
        if self.anchors is not None:
            self.anchors.end_task(task)
        self.classifier.end_task(task)

    def logits(self, embedded: Embedded) -> Tensor:
        """Scores ``logits_BC`` of encoded images over all classes seen, after a task's end."""
        return self.classifier.logits(embedded)

    def probabilities(self, embedded: Embedded) -> Tensor:
        """``probability_BC`` of encoded images, see its classifier."""
        return self.classifier.probabilities(self.logits(embedded))

    def adaptation_sha256(self) -> bytes:
        """A hash of all tensors outside the classifier: equal ones embed equally."""
        digest = hashlib.sha256()
        for name, value in self.state_dict().items():
            if not name.startswith("classifier."):
                digest.update(name.encode())
                digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
        return digest.digest()

    def changeable_names(self) -> set[str]:
        """Names of the tensors that the current task may change: trained parameters, buffers."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        return trained | {name for name, _ in self.named_buffers()}

    def restore_task(self, task: Task, learned: Mapping[str, Tensor]) -> None:
        """Take the state after ``task`` from its ``learned`` tensors, in place of training.

        Tasks are restored in order, each once.

        Raises:
            DataError: the method has no tensor of one of the names.
        """
        self.begin_task(task)
        self.load_learned(learned)
        self.end_task(task)
        self.load_learned(learned)  # the tensors that only the end of the task creates
        unknown = sorted(learned.keys() - self.state_dict().keys())
        if unknown:
            raise DataError(
                f"task {task.index + 1}: this version has no tensor {unknown[0]}; "
                "continue with the version that learned the task"
            )

    @torch.no_grad()
    def load_learned(self, learned: Mapping[str, Tensor]) -> None:
        """Copy ``learned`` into the tensors of the same name that exist.

        Raises:
            DataError: a tensor has another shape or type.
        """
        own = self.state_dict()
        for name in own.keys() & learned.keys():
            here, stored = own[name], learned[name]
            if (here.shape, here.dtype) != (stored.shape, stored.dtype):
                raise DataError(
                    f"the stored tensor {name} has shape {list(stored.shape)} of {stored.dtype}, "
                    f"and this run needs {list(here.shape)} of {here.dtype}; restore the output "
                    "from a copy, or remove it to start again"
                )
            here.copy_(stored)
