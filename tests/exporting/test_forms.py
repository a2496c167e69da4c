"""Every method and classifier is exported with the scores that it has itself."""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from pipeline.config import MethodConfig
from pipeline.errors import ConfigError, DataError, PipelineError
from pipeline.exporting.check import check_scores
from pipeline.exporting.files import write_files
from pipeline.exporting.form import (
    Form,
    class_metadata,
    embedding_file,
    form_of,
    record_of,
    tensor_file,
)
from pipeline.exporting.program import torch_file, trace
from pipeline.inference import Classifier, load_classifier
from pipeline.methods import build_method
from pipeline.methods.base import Method
from pipeline.output.learned import LearnedRun
from pipeline.output.results import RunResults, finished_results
from tests.tiny import build_config, build_context, draw_batch, draw_images, tiny_tasks
from tests.variants import VARIANTS

LOADER = Path(sys.modules[Form.__module__].__file__ or "").with_name("load.py")
CLOSED = {"projection": 31, "vectors": ["frozen_pooled", "frozen_penultimate", "embedding"]}
MORE = {
    "class means of two vectors": ("simplecil", {"name": "class_means", "options": {
        "vectors": ["frozen_joint", "pooled"]}}),
    "sum of sums": ("finetune", {"name": "sum", "options": {
        "first": {"name": "sum", "options": {"weight": 0.3, "second": {"name": "class_means"}}},
        "second": {"name": "ridge", "options": CLOSED}, "weight": 0.25}}),
    "fitted anchors": ("tppt_v", {"name": "fitted_anchors", "options": {"steps": 3}}),
}  # fmt: skip
# Two of the tests' own: a classifier and a method that say nothing about an export.
EXPORTED = [
    label for label, method in VARIANTS.items() if "tests.probes" not in method.model_dump_json()
]
PROGRAM = "contexts per task"  # also as a program of torch.export
SCRIPT = """
import importlib.util, json, sys
from pathlib import Path

sys.modules["pipeline"] = None  # any import of it fails
import open_clip
import torch
torch.set_grad_enabled(False)
from PIL import Image
from safetensors.torch import load_file

found = {}
arch, *folders = sys.argv[1:]
for folder in map(Path, folders):
    spec = importlib.util.spec_from_file_location("load", folder / "load.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model, preprocess, classes = module.load()
    asked = load_file(folder / "asked")
    images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in asked["images"]]
    pixels = torch.stack([preprocess(image) for image in images])
    differences = [float((model(pixels) - asked["scores"]).abs().max())]
    if (folder / "class_embeddings.safetensors").exists():  # open_clip alone
        own = load_file(folder / "class_embeddings.safetensors")
        clip, _, _ = open_clip.create_model_and_transforms(arch)
        features = clip.eval().encode_image(pixels, normalize=True)
        scores = own["logit_scale"] * features @ own["class_embeddings"].T
        differences.append(float((scores - asked["scores"]).abs().max()))
    if (folder / "classifier.pt2").exists():
        program = torch.export.load(folder / "classifier.pt2").module()
        logits, _ = program(asked["images"])
        differences.append(float((logits - asked["scores"]).abs().max()))
    found[folder.name] = differences, len(classes)
assert not [name for name in sys.modules if name.startswith("pipeline.")]
print(json.dumps(found))
"""


def learned(method: Method) -> Method:
    """The method after the tiny tasks, with noise in place of what training changes."""
    torch.manual_seed(3)
    for task in tiny_tasks():
        method.begin_task(task)
        image_BCHW, label_B, features = draw_batch(method.clip, task, 10, seed=task.index)
        with torch.no_grad():
            for moment in ("start", "end"):
                if moment in method.fits:
                    embedded = method.encode(image_BCHW, features)
                    method.fit(moment, [(embedded, label_B)])
                for parameter in method.parameters():
                    if parameter.requires_grad:
                        parameter += torch.randn_like(parameter) * 0.1
            method.end_task(task)
    return method.eval()


def learned_as(label: str, clip) -> Method:
    if label in VARIANTS:
        return learned(build_method(VARIANTS[label], build_context(clip)))
    name, classifier = MORE[label]
    method = MethodConfig(name=name, options={name: {"classifier": classifier}})
    return learned(build_method(method, build_context(clip)))


@torch.no_grad()
def scores_of(method: Method, image_BCHW: Tensor) -> Tensor:
    features = method.clip.encode_image(image_BCHW)
    return method.logits(method.encode(image_BCHW, features)).double()


@pytest.fixture(scope="module")
def results(learned_run: Path) -> RunResults:
    """The results of a run with the tiny tasks."""
    return finished_results(str(learned_run))


def run_of(method: Method, arch: str) -> LearnedRun:
    name = type(method).__name__
    return LearnedRun(method, tiny_tasks(), build_config(arch, "unused", name=name))


@pytest.fixture(scope="module")
def exports(tiny_arch, tiny_clip, results, tmp_path_factory) -> dict[str, Path]:
    """An export of each method, with images and the scores that the method itself gives them."""
    folder, found = tmp_path_factory.mktemp("exports"), {}
    for number, label in enumerate([*EXPORTED, *MORE]):
        run = run_of(learned_as(label, tiny_clip), tiny_arch)
        form = form_of(run)
        record = record_of(run, Classifier.of(run), results, form)
        out = folder / f"export-{number}"
        files = {"classifier.safetensors": tensor_file(form)}
        if form.is_open_clip:
            file = embedding_file(form.heads[0], class_metadata(record))
            files["class_embeddings.safetensors"] = file
        write_files(str(out), record, files, card="", loader=LOADER.read_bytes())
        if label == PROGRAM:
            data = torch_file(trace(load_classifier(str(out))))
            (out / "classifier.pt2").write_bytes(data)
        image_BCHW = draw_images(6)
        scores_BC = scores_of(run.method, image_BCHW)
        save_file({"images": image_BCHW, "scores": scores_BC}, out / "asked")
        found[label] = out
    return found


def test_loader_without_this_package_gives_the_same_scores(exports, tiny_arch, tmp_path):
    """must hold also for open_clip alone where one vector per class is all that was learned"""
    found = subprocess.run(
        [sys.executable, "-I", "-c", SCRIPT, tiny_arch, *map(str, exports.values())],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    differences = json.loads(found.stdout)
    for label, out in exports.items():
        found_by_form, n_classes = differences[out.name]
        assert (max(found_by_form) <= 1e-5, n_classes) == (True, 7), (label, found_by_form)
    n_forms = {label: len(differences[out.name][0]) for label, out in exports.items()}
    plain = {"zeroshot", "coop", "class means"}
    assert {label for label, count in n_forms.items() if count == 2} == plain | {PROGRAM}


@pytest.mark.parametrize("label", [*EXPORTED, *MORE])
def test_export_in_place_of_a_run_gives_the_same_scores(label, exports):
    asked = load_file(exports[label] / "asked")
    classifier = load_classifier(str(exports[label]))
    found_BC = classifier(asked["images"])
    torch.testing.assert_close(found_BC, asked["scores"], rtol=0, atol=1e-5)
    assert classifier.task_of_class == (1, 1, 1, 2, 2, 2, 3)
    assert torch.equal(
        classifier.probabilities(asked["images"]).argmax(dim=1), asked["scores"].argmax(dim=1)
    )


def test_preprocessing_of_the_loader_is_that_of_the_run(exports):
    """must hold for images of any shape and mode, without this package's transform"""
    out = exports["finetune"]
    sys.path.insert(0, str(out))
    try:
        from load import load
    finally:
        sys.path.pop(0)
        sys.modules.pop("load", None)
    _, preprocess, _ = load()
    classifier = load_classifier(str(out))
    for mode, size in (("RGB", (37, 50)), ("L", (64, 22)), ("RGBA", (21, 21)), ("P", (90, 91))):
        drawn = torch.randint(0, 256, (size[1], size[0], 3), dtype=torch.uint8)
        image = Image.fromarray(drawn.numpy()).convert(mode)
        wanted_CHW = classifier.method.clip.normalise(classifier.preprocess(image))
        assert torch.equal(preprocess(image), wanted_CHW), mode


def test_loader_is_short():
    """must stay under 60 lines of code, blank lines, docstrings and comments left out"""
    text = LOADER.read_text()
    nodes = [node for node in ast.walk(ast.parse(text)) if hasattr(node, "body")]
    documented = [node for node in nodes if isinstance(node, (ast.Module, ast.FunctionDef))]
    starts = [node.body[0] for node in documented if ast.get_docstring(node)]
    docs = {line for each in starts for line in range(each.lineno, each.end_lineno + 1)}
    lines = enumerate(map(str.strip, text.splitlines()), start=1)
    code = [line for n, line in lines if line and not line.startswith("#") and n not in docs]
    assert len(code) < 60 and len(text.splitlines()) < 80
    assert "pipeline" not in text


@pytest.mark.parametrize("label", ["keys of a pool", "ridge"])
def test_what_says_nothing_about_exports_is_refused(label, tiny_arch, tiny_clip):
    run = run_of(learned_as(label, tiny_clip), tiny_arch)
    with pytest.raises(ConfigError, match="export the program alone with --torch-export"):
        form_of(run)


def test_wrong_form_is_refused(tiny_arch, tiny_clip, monkeypatch):
    run = run_of(learned_as("finetune", tiny_clip), tiny_arch)
    monkeypatch.setattr(run.method, "exported_prompts", list)
    with pytest.raises(ConfigError, match="do not give the scores of the run"):
        form_of(run)


@torch.no_grad()
def test_scores_that_are_no_numbers_are_refused(tiny_arch, tiny_clip, monkeypatch):
    """must hold although NaN differs from nothing by more than a bound"""
    run = run_of(learned_as("finetune", tiny_clip), tiny_arch)
    [head] = run.method.classifier.heads()
    broken = [head._replace(scale=float("nan"))]
    monkeypatch.setattr(run.method.classifier, "heads", lambda: broken)
    with pytest.raises(ConfigError, match="do not give the scores of the run"):
        form_of(run)
    finite, nan = (partial(_constant, value) for value in (1.0, float("nan")))
    for wanted, found in ((finite, nan), (nan, nan)):
        with pytest.raises(DataError, match="classifier.onnx: its scores differ"):
            check_scores(wanted, {"classifier.onnx": found}, 8)


def _constant(value: float, image_BCHW: Tensor) -> Tensor:
    return torch.full((len(image_BCHW), 7), value)


def test_random_backbone_is_refused(tiny_arch, tiny_clip):
    run = run_of(learned_as("zeroshot", tiny_clip), tiny_arch)
    model = run.config.model.model_copy(update={"arch": "ViT-B-32", "weights": "random"})
    config = run.config.model_copy(update={"model": model})
    with pytest.raises(ConfigError, match="'random', which no other program can load"):
        form_of(LearnedRun(run.method, run.tasks, config))


def test_names_of_tensors_are_those_that_the_record_counts(exports):
    record = json.loads((exports["sum of sums"] / "export.json").read_text())
    with safe_open(exports["sum of sums"] / "classifier.safetensors", "pt") as tensors:
        names = set(tensors.keys())
    assert {"heads.0.weight", "heads.1.weight", "heads.2.projection"} <= names
    assert len(record["heads"]) == 3 and len(record["prompts"]) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "version: Input should be 1"),
        ({"classes": ["a"]}, "have different lengths"),
        ({"task_of_class": [2, 1, 1, 1, 1, 1, 1]}, "does not ascend from 1 to stage"),
        ({"prompts": []}, "'prompts.0.attention' belongs to no part of the record"),
        ({"backbone": {"arch": "local-dir:/nowhere", "weights": None, "sha256": "0",
                       "precision": "auto"}}, "there is no folder /nowhere"),
        ({"heads": []}, "holds the program classifier.pt2 alone"),
        ({"files": {}}, "is not the file that the export wrote"),
    ],
)  # fmt: skip
def test_changed_record_is_refused(change, words, exports, tmp_path):
    record = json.loads((exports["finetune"] / "export.json").read_text()) | change
    shutil.copy(exports["finetune"] / "classifier.safetensors", tmp_path)
    (tmp_path / "export.json").write_text(json.dumps(record))
    with pytest.raises(PipelineError, match=words):
        load_classifier(str(tmp_path))


def test_other_stage_is_refused(exports):
    with pytest.raises(ConfigError, match="was exported after 3 tasks, and stage 2 was asked for"):
        load_classifier(str(exports["finetune"]), 2)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("heads.0.weight", (7, 3), r"weights have shape \[7, 3\], and \[7, 19\] is wanted"),
        ("prompts.0.components", (3, 10, 8, 5), "prompts have shape"),
        ("prompts.0.keys", (9, 26), "keys of prompts are missing, or not of shape"),
    ],
)
def test_tensors_of_another_shape_are_refused(name, shape, words, exports, tmp_path):
    tensors = load_file(exports["finetune"] / "classifier.safetensors") | {name: torch.ones(shape)}
    data = save(tensors)
    record = json.loads((exports["finetune"] / "export.json").read_text())
    record["files"] = {"classifier.safetensors": hashlib.sha256(data).hexdigest()}
    (tmp_path / "classifier.safetensors").write_bytes(data)
    (tmp_path / "export.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=words):
        load_classifier(str(tmp_path))
