"""The complete classifier as one program: ONNX, or the format of ``torch.export``.

Both take uint8 pixels ``image`` B×3×H×W of any B and give ``logits`` and ``probabilities``, B×C in
float32. The image tower, the normalisation and the prompts are inside.
"""

from __future__ import annotations

import importlib
import io
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from types import ModuleType

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.exporting.form import random_images
from pipeline.inference import Classifier
from pipeline.inference.export_record import ExportRecord

_LARGEST_ONNX = 2 * 10**9  # bytes: one file of protobuf holds 2 GiB

Predict = Callable[[Tensor], Tensor]  # image_BCHW, uint8 → logits_BC


class ImageProgram(nn.Module):
    """Pixels to scores and probabilities, without the checks of :class:`Classifier`."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.method = classifier.method
        self.visual = classifier.method.clip.clip.visual  # its weights become those of the program

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """``logits_BC`` and ``probability_BC``, float32."""
        method = self.method
        features = method.clip.encode_image(image) if method.needs_features else None
        logits_BC = method.logits(method.encode(image, features))
        return logits_BC.float(), method.classifier.probabilities(logits_BC)


def trace(classifier: Classifier) -> torch.export.ExportedProgram:
    """The classifier as a graph, for any number of images.

    Raises:
        ConfigError: the method does something that torch.export cannot follow.
    """
    program = ImageProgram(classifier).eval().requires_grad_(False)
    image_BCHW = random_images(classifier.image_size, 5)
    with torch.no_grad(), _without_fused_kernels():
        program(image_BCHW)  # what is computed once is computed before
        batch = torch.export.Dim("batch", min=1, max=4096)
        try:
            return torch.export.export(
                program, (image_BCHW,), dynamic_shapes=({0: batch},), strict=False
            )
        except Exception as error:  # of dynamo, of symbolic shapes, or of the method
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise ConfigError(
                f"torch.export cannot follow the method {type(classifier.method).__name__}: "
                f"{reason}; leave --torch-export and --onnx out"
            ) from error


def torch_file(program: torch.export.ExportedProgram) -> bytes:
    """``classifier.pt2``, which ``torch.export.load`` reads."""
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def onnx_file(program: torch.export.ExportedProgram, record: ExportRecord) -> bytes:
    """``classifier.onnx``, with the record's classes and preprocessing in its metadata.

    Raises:
        ConfigError: a package is missing, or the model is too large for one file.
    """
    onnx, _ = required("onnx"), required("onnxscript")
    size = sum(value.nbytes for value in program.state_dict.values())
    if size > _LARGEST_ONNX:
        raise ConfigError(
            f"the model has {size / 1e9:.1f} GB, and one ONNX file holds 2 GB; use --torch-export"
        )
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it reports every step
    with redirect_stdout(io.StringIO()):
        converted = torch.onnx.export(
            program,
            (),
            input_names=["image"],
            output_names=["logits", "probabilities"],
            dynamo=True,
            verbose=False,
        )
    assert converted is not None, "asked for a program, not for a file"
    model = converted.model_proto
    about = {
        "classes": record.classes,
        "task_of_class": record.task_of_class,
        "preprocessing": record.preprocessing_steps[:-2],  # the others are inside
        "image_size": record.preprocessing.image_size,
        "resize_mode": record.preprocessing.resize_mode,
        "interpolation": record.preprocessing.interpolation,
    }
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in about.items()})
    onnx.checker.check_model(model)
    return model.SerializeToString()


def run_onnx(data: bytes) -> Predict:
    """The scores of an ONNX file, by onnxruntime on the CPU."""
    session = required("onnxruntime").InferenceSession(data, providers=["CPUExecutionProvider"])

    def predict(image_BCHW: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"image": image_BCHW.numpy()})[0])

    return predict


def run_torch(data: bytes) -> Predict:
    """The scores of a file of ``torch.export``; only for files that this process has written.

    Loading such a file is not safe: parts of the format are pickled.
    """
    program = torch.export.load(io.BytesIO(data)).module()

    @torch.no_grad()
    def predict(image_BCHW: Tensor) -> Tensor:
        return program(image_BCHW)[0]

    return predict


def required(name: str) -> ModuleType:
    """An optional package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"--onnx needs the package {name}, which cannot be imported ({error}); install it: "
            "pip install onnx onnxruntime onnxscript"
        ) from None


@contextmanager
def _without_fused_kernels() -> Iterator[None]:
    """Let attention be traced as its parts: other runtimes do not know torch's fused one."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
