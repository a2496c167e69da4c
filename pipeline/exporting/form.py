"""A run in the form of an export: a record, and the learned tensors beside it.

Axes: B images · C classes · D blocks · M components · L tokens · V vision width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from pipeline.classifiers import LinearHead
from pipeline.config import with_absolute_paths
from pipeline.errors import ConfigError
from pipeline.inference import Classifier
from pipeline.inference.export_record import (
    TRANSFORMS,
    BackboneRecord,
    ExportRecord,
    HeadRecord,
    Part,
    PreprocessingRecord,
    PromptRecord,
    TestRecord,
    tensor_name,
)
from pipeline.inference.exported import ExportedMethod, LinearHeads
from pipeline.methods.base import Method
from pipeline.model.backbone import FrozenClip
from pipeline.model.prompt_groups import PromptGroup
from pipeline.output.learned import LearnedRun
from pipeline.output.results import RunResults

_TOLERANCE = 1e-4  # of the largest score, between a run and its form
_PACKAGES = ("torch", "torchvision", "open_clip_torch", "safetensors", "pillow")


@dataclass(frozen=True)
class Form:
    """The prompts and heads of a run; both empty for a run that is exported as a program alone."""

    prompts: list[PromptGroup]
    heads: list[LinearHead]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The content of ``classifier.safetensors``."""
        found: dict[str, Tensor] = {}
        for number, group in enumerate(map(_as_nearest, self.prompts)):
            parts = {
                "components": group.prompt_DMLV,
                "keys": group.key_MV,
                "attention": group.attention_MV,
            }
            found |= _named("prompts", number, parts)
        for number, head in enumerate(self.heads):
            bias_C = head.bias_C
            if bias_C is None:
                bias_C = head.weight_CF.new_zeros(len(head.weight_CF))
            parts = {
                "weight": head.weight_CF,
                "bias": bias_C,
                "projection": head.projection_FM,
            }
            found |= _named("heads", number, parts)
        return found

    @property
    def is_open_clip(self) -> bool:
        """Whether open_clip classifies alike by one vector per class."""
        if self.prompts or len(self.heads) != 1:
            return False
        (head,) = self.heads
        has_more = head.projection_FM is not None or head.bias_C is not None
        return head.vectors == (("embedding",),) and not has_more

    def method_like(self, method: Method) -> ExportedMethod:
        """A method in this form, which must embed and score as ``method`` does."""
        heads = LinearHeads(self.heads, probability_scale=method.classifier.probability_scale)
        return ExportedMethod(method.clip, self.prompts, heads)


def form_of(run: LearnedRun) -> Form:
    """The form of a run, whose scores are checked against those of the run on random images.

    Raises:
        ConfigError: the method or the classifier has no such form.
    """
    method = run.method
    if run.config.model.weights == "random":
        raise ConfigError(
            "model.weights of the run is 'random', which no other program can load; export a run "
            "on a pretrained CLIP"
        )
    form = Form(method.exported_prompts(), method.classifier.heads())
    exported = form.method_like(method)
    image_BCHW = random_images(method.clip.image_size, 4)
    features = method.clip.encode_image(image_BCHW)
    with torch.no_grad():
        wanted_BC = method.logits(method.encode(image_BCHW, features)).double()
        found_BC = exported.logits(exported.encode(image_BCHW, features)).double()
    largest, difference = wanted_BC.abs().max(), (wanted_BC - found_BC).abs().max()
    if not float(difference) <= _TOLERANCE * max(float(largest), 1e-12):  # or NaN
        raise ConfigError(
            f"exported_prompts() of {type(method).__name__} and heads() of "
            f"{type(method.classifier).__name__} do not give the scores of the run (they differ by "
            f"{float(difference):.2g}); correct them, or export the program alone with "
            "--torch-export"
        )
    return form


def random_images(size: int, n_images: int) -> Tensor:
    """Random pixels ``image_BCHW``, uint8, always the same ones."""
    generator = torch.Generator().manual_seed(0)
    shape = (n_images, 3, size, size)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def record_of(
    run: LearnedRun, classifier: Classifier, results: RunResults, form: Form
) -> ExportRecord:
    """The record of a run, without the hashes of the files."""
    config, clip, method = with_absolute_paths(run.config), run.method.clip, run.method
    stage = len(run.tasks)
    counts = results.counts
    manifest = results.manifest
    resize = next(mode for mode, name in TRANSFORMS.items() if name == config.data.eval_transform)
    mean, std = _statistics(clip)
    return ExportRecord(
        name=config.name,
        method=config.method.name,
        classifier=method.options.classifier.name,
        stage=stage,
        classes=list(classifier.classes),
        task_of_class=list(classifier.task_of_class),
        preprocessing=PreprocessingRecord(
            image_size=clip.image_size, resize_mode=resize, mean=mean, std=std
        ),
        preprocessing_steps=_steps(clip.image_size, resize, mean, std),
        backbone=BackboneRecord(
            arch=config.model.arch,
            weights=config.model.weights,
            sha256=clip.sha256,
            precision=config.model.precision,
        ),
        prompts=list(map(_prompt_record, form.prompts)),
        heads=list(map(_head_record, form.heads)),
        probability_scale=method.classifier.probability_scale,
        test=TestRecord(
            split=config.evaluation.split,
            validation_fraction=config.data.validation_fraction,
            correct=sum(counts.correct[stage - 1]),
            images=sum(counts.images[stage - 1]),
            labels=[label for task in run.tasks for label in task.labels],
        ),
        run={
            "seed": config.seed,
            "config_sha256": manifest.config_sha256,
            "protocol_sha256": results.protocol.sha256,
            "index_sha256": manifest.index_sha256,
            "git_commit": manifest.git_commit,
        },
        packages={name: version(name) for name in _PACKAGES},
        files={},
    )


def _prompt_record(group: PromptGroup) -> PromptRecord:
    return PromptRecord(
        first_block=group.first_block,
        place=group.place,
        choice="weighted" if group.choice == "weighted" else "nearest",
        n_nearest=group.n_nearest,
    )


def _head_record(head: LinearHead) -> HeadRecord:
    return HeadRecord(
        vectors=[list(part) for part in head.vectors],
        scale=head.scale,
        coefficient=head.coefficient,
    )


def tensor_file(form: Form) -> bytes:
    """``classifier.safetensors``."""
    return to_safetensors(form.tensors, metadata={"format": "pt"})


def anchor_file(anchor_CE: Tensor, classes: Mapping[str, str]) -> bytes:
    """``anchors.safetensors``: one unit vector per class."""
    return to_safetensors({"anchors": _plain(anchor_CE)}, metadata=dict(classes))


def embedding_file(head: LinearHead, classes: Mapping[str, str]) -> bytes:
    """``class_embeddings.safetensors``, for the classification of open_clip itself."""
    tensors = {
        "class_embeddings": _plain(head.weight_CF).float(),
        "logit_scale": torch.tensor(head.scale * head.coefficient),
    }
    return to_safetensors(tensors, metadata=dict(classes))


def class_metadata(record: ExportRecord) -> dict[str, str]:
    """The class names, in the order of the rows, as metadata of a file."""
    return {"classes": json.dumps(record.classes)}


def _as_nearest(group: PromptGroup) -> PromptGroup:
    """A group without a choice as the nearest of one component: a case less for loaders."""
    if group.choice != "all":
        return group
    prompt_D1LV = group.prompt_DMLV.sum(dim=1, keepdim=True)
    key_1V = prompt_D1LV.new_zeros(1, prompt_D1LV.shape[-1])
    return group._replace(choice="nearest", prompt_DMLV=prompt_D1LV, key_MV=key_1V)


def _named(part: Part, number: int, tensors: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    return {
        tensor_name(part, number, name): _plain(tensor)
        for name, tensor in tensors.items()
        if tensor is not None
    }


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()


def _statistics(clip: FrozenClip) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the channels of normalised pixels."""
    visual = clip.clip.visual
    return list(map(float, visual.image_mean)), list(map(float, visual.image_std))


def _steps(size: int, resize_mode: str, mean: list[float], std: list[float]) -> list[str]:
    crop = f"crop the {size}×{size} pixels of the centre"
    resized = [f"resize the short side to {size} pixels (bicubic)", crop]
    if resize_mode == "squash":
        resized = [f"resize to {size}×{size} pixels (bicubic), whatever the aspect ratio"]
    return [
        "convert to RGB",
        *resized,
        "divide by 255",
        f"subtract {mean} and divide by {std}, by channel",
    ]
