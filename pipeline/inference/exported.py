"""An export read back: the same embeddings and scores as those of its run.

Axes: B images · C classes · D blocks · L tokens · M components or random features · F width of the
vectors · V vision width · E joint width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline import storage
from pipeline.classifiers import Classifier, Embedded, LinearHead
from pipeline.classifiers.vectors import reads_features, vectors_of
from pipeline.config import ModelConfig
from pipeline.data.transforms import Transform, build_transform
from pipeline.errors import ConfigError, DataError
from pipeline.inference.export_record import (
    TENSORS_NAME,
    TRANSFORMS,
    ExportRecord,
    read_record,
    tensor_name,
)
from pipeline.methods.base import Inputs, Method, given
from pipeline.model.backbone import FrozenClip, ImageFeatures
from pipeline.model.blocks import Prefix
from pipeline.model.prompt_groups import Choice, PromptGroup
from pipeline.model.prompts import unit
from pipeline.model.weights import load_clip
from pipeline.output.learned import moved_weights, parse_tensors
from pipeline.tasks import Task


class LinearHeads(Classifier):
    """The sum of linear heads, ``logits_BC`` in float64."""

    def __init__(self, heads: Sequence[LinearHead], *, probability_scale: float) -> None:
        nn.Module.__init__(self)
        self.probability_scale = probability_scale
        self._heads = list(heads)

    @property
    def reads_features(self) -> bool:
        """Whether a head reads the frozen tower."""
        return any(reads_features(part) for head in self._heads for part in head.vectors)

    def logits(self, embedded: Embedded) -> Tensor:
        """Scores ``logits_BC``."""
        scores = [self._scores(head, embedded) for head in self._heads]
        return sum(scores[1:], start=scores[0])

    def heads(self) -> list[LinearHead]:
        """The heads."""
        return self._heads

    @staticmethod
    def _scores(head: LinearHead, embedded: Embedded) -> Tensor:
        kind = head.weight_CF.dtype
        parts = [unit(vectors_of(embedded, part).to(kind)) for part in head.vectors]
        vector_BF = torch.cat(parts, dim=1)
        if head.projection_FM is not None:
            vector_BF = (vector_BF @ head.projection_FM).relu()
        score_BC = head.scale * vector_BF @ head.weight_CF.T
        if head.bias_C is not None:
            score_BC = score_BC + head.bias_C
        return head.coefficient * score_BC.double()


class ExportedMethod(Method):
    """A method in the form of an export: it embeds and scores, and learns nothing."""

    def __init__(
        self, clip: FrozenClip, prompts: Sequence[PromptGroup], classifier: LinearHeads
    ) -> None:
        nn.Module.__init__(self)  # the contract's parts for learning stay away
        self.clip = clip
        self.anchors = None
        self.classifier = classifier
        self._prompts = list(prompts)

    @property
    def inputs(self) -> Inputs:
        """Images if there are prompts, and features if they depend on the image."""
        needs_query = any(group.needs_query for group in self._prompts)
        return Inputs(images=bool(self._prompts), features=needs_query or not self._prompts)

    def exported_prompts(self) -> list[PromptGroup]:
        """The prompts."""
        return self._prompts

    def embed(self, image_BCHW: Tensor | None, features: ImageFeatures | None) -> Embedded:
        """Unit embeddings of the image tower behind the prompts, if there are any."""
        if not self._prompts:
            return Embedded.of(given(features))
        image_BCHW = given(image_BCHW)
        query_BV = given(features).pooled_BV if self.inputs.features else None
        token_DBLV, first_layer = None, 0
        prefixes: dict[int, Prefix] = {}
        for group in self._prompts:
            prompt_DBLV = group.for_images(query_BV, image_BCHW.shape[0])
            if group.place == "tokens":
                token_DBLV, first_layer = prompt_DBLV, group.first_block
            else:
                prefixes |= {
                    block: Prefix(*prompt_BLV.chunk(2, dim=1))
                    for block, prompt_BLV in enumerate(prompt_DBLV, start=group.first_block)
                }
        adapted = self.clip.encode_image(
            image_BCHW, token_DBLV, prefixes, first_layer=0 if prefixes else first_layer
        )
        return Embedded.of(adapted)


class Exported(NamedTuple):
    """An export, loaded."""

    method: ExportedMethod
    tasks: tuple[Task, ...]
    record: ExportRecord
    transform: Transform


def load_export(
    source: str, stage: int | None, *, device: torch.device, weights: str | None = None
) -> Exported:
    """The export at ``source``; ``weights`` is the present path of its backbone's weights.

    Raises:
        ConfigError: it was exported after another number of tasks than ``stage``.
        DataError: it is damaged, it is a program alone, or the weights are others.
        WeightsError: the backbone cannot be loaded.
        StorageError: a file cannot be read.
    """
    record, place = read_record(source), storage.redact(source)
    if stage not in (None, record.stage):
        raise ConfigError(
            f"{place}: was exported after {record.stage} tasks, and stage {stage} was asked for; "
            "leave the stage out, or export the run again with --stage"
        )
    if not record.heads:
        raise DataError(
            f"{place}: holds the program classifier.pt2 alone, since its method has no other "
            "form; load it by torch.export.load, or use the run"
        )
    tensors = _read_tensors(source, record)
    backbone = record.backbone
    model = ModelConfig(arch=backbone.arch, weights=backbone.weights)
    model = moved_weights(model, weights) if weights else model
    clip = load_clip(model.arch, model.weights, device=device, precision=backbone.precision)
    if clip.sha256 != backbone.sha256:
        raise DataError(
            f"{place}: was learned on a backbone with other weights than {clip.name}; give the "
            f"weights of {backbone.arch} whose hash is {backbone.sha256[:12]}…"
        )
    prompts, heads = _parts_of(record, tensors, device)
    problem = _unnamed(record, tensors) or _misfit(record, clip, prompts, heads)
    if problem:
        raise DataError(f"{place}: {problem}; export the run again")
    classifier = LinearHeads(heads, probability_scale=record.probability_scale)
    preprocessing = record.preprocessing
    return Exported(
        ExportedMethod(clip, prompts, classifier).eval(),
        _tasks_of(record),
        record,
        build_transform(TRANSFORMS[preprocessing.resize_mode], preprocessing.image_size),
    )


def _read_tensors(source: str, record: ExportRecord) -> dict[str, Tensor]:
    url = storage.join(source, TENSORS_NAME)
    data = storage.read_bytes(url, most=storage.MAX_TENSOR_BYTES)
    if hashlib.sha256(data).hexdigest() != record.files.get(TENSORS_NAME):
        raise DataError(
            f"{storage.redact(url)}: is not the file that the export wrote; export the run again"
        )
    return parse_tensors(data, url, remedy="export the run again")


def _parts_of(
    record: ExportRecord, tensors: Mapping[str, Tensor], device: torch.device
) -> tuple[list[PromptGroup], list[LinearHead]]:
    """Prompts and heads with their tensors, where these exist."""
    placed = {name: tensor.to(device) for name, tensor in tensors.items()}
    empty = torch.empty(0, device=device)  # a missing one fits nothing, see _misfit
    prompts = []
    for number, group in enumerate(record.prompts):
        components, keys, attention = (
            placed.get(tensor_name("prompts", number, name))
            for name in ("components", "keys", "attention")
        )
        components = empty if components is None else components
        is_shared = group.choice == "nearest" and components.shape[1:2] == (1,)
        choice: Choice = "all" if is_shared else group.choice
        settings = (group.first_block, group.place, choice)
        prompts.append(PromptGroup(*settings, components, keys, attention, group.n_nearest))
    heads = []
    for number, head in enumerate(record.heads):
        weight, projection, bias = (
            placed.get(tensor_name("heads", number, name))
            for name in ("weight", "projection", "bias")
        )
        weight = empty if weight is None else weight
        vectors = tuple(map(tuple, head.vectors))
        heads.append(LinearHead(vectors, weight, projection, bias, head.scale, head.coefficient))
    return prompts, heads


def _unnamed(record: ExportRecord, tensors: Iterable[str]) -> str | None:
    """The reason why there are tensors of no part of the record, or None."""
    parts = {"prompts": len(record.prompts), "heads": len(record.heads)}
    known = tuple(f"{part}.{number}." for part, count in parts.items() for number in range(count))
    unknown = sorted(name for name in tensors if not name.startswith(known))
    return f"the tensor {unknown[0]!r} belongs to no part of the record" if unknown else None


def _misfit(
    record: ExportRecord,
    clip: FrozenClip,
    prompts: Sequence[PromptGroup],
    heads: Sequence[LinearHead],
) -> str | None:
    """The reason why tensors do not fit the record and the backbone, or None."""
    if record.preprocessing.image_size != clip.image_size:
        return f"images of {record.preprocessing.image_size} pixels do not fit {clip.name}"
    if sum(group.place == "tokens" for group in prompts) > 1:
        return "more than one group of prompts is inserted as tokens"
    width = clip.vision_width
    for group in prompts:
        shape = tuple(group.prompt_DMLV.shape)
        if len(shape) != 4 or shape[3] != width or 0 in shape:
            return f"prompts have shape {list(shape)}, and D, M, L, {width} is wanted"
        depth, n_components, length = shape[:3]
        n_wanted = {"all": 0, "nearest": 1, "weighted": 2}[group.choice]
        tables = [group.key_MV, group.attention_MV][:n_wanted]
        if any(table is None or table.shape != (n_components, width) for table in tables):
            return f"keys of prompts are missing, or not of shape [{n_components}, {width}]"
        if group.first_block + depth > clip.vision_layers or group.n_nearest > n_components:
            return f"prompts of block {group.first_block + depth} do not fit {clip.name}"
        if group.place == "prefix" and length % 2:
            return f"a prefix of {length} tokens has no two halves"
    return next(filter(None, (_head_misfit(record, clip, head) for head in heads)), None)


def _head_misfit(record: ExportRecord, clip: FrozenClip, head: LinearHead) -> str | None:
    joint = {"embedding", "frozen_joint"}
    vectors = [vector for part in head.vectors for vector in part]
    widths = (clip.joint_width if vector in joint else clip.vision_width for vector in vectors)
    width, n_classes = sum(widths), len(record.classes)
    projection = head.projection_FM
    if projection is not None:
        if projection.shape[:1] != (width,) or projection.ndim != 2:
            return f"a projection has shape {list(projection.shape)}, and [{width}, M] is wanted"
        width = projection.shape[1]
    if head.weight_CF.shape != (n_classes, width):
        found = list(head.weight_CF.shape)
        return f"weights have shape {found}, and [{n_classes}, {width}] is wanted"
    if head.bias_C is not None and head.bias_C.shape != (n_classes,):
        return f"a bias has shape {list(head.bias_C.shape)}, and [{n_classes}] is wanted"
    parts = (head.weight_CF, projection, head.bias_C)
    kinds = {part.dtype for part in parts if part is not None}
    if kinds not in ({torch.float32}, {torch.float64}):
        return "the tensors of a head are neither all float32 nor all float64"
    return None


def _tasks_of(record: ExportRecord) -> tuple[Task, ...]:
    """The tasks with their classes, as a run has them."""
    tasks: list[Task] = []
    classes: Iterable[tuple[int, int, str]]
    classes = list(zip(record.task_of_class, record.test.labels, record.classes, strict=True))
    for index in range(record.stage):
        own = [(label, name) for task, label, name in classes if task == index + 1]
        first = tasks[-1].last if tasks else 0
        labels, names = tuple(label for label, _ in own), tuple(name for _, name in own)
        tasks.append(Task(index, first, labels, names))
    return tuple(tasks)
