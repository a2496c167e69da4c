"""What a run has learned, as a torch module: from any folder, without what only training needs."""

from __future__ import annotations

import doctest
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from pipeline import load_classifier, storage
from pipeline.classifiers import CLASSIFIERS
from pipeline.errors import ConfigError, DataError, WeightsError
from pipeline.inference import Classifier
from pipeline.inference import classifier as classifier_module
from pipeline.inference.labels import Score
from tests.tiny import CLASSES, draw_images, tiny_tasks, write_clip

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def classifier(learned_run: Path) -> Classifier:
    return load_classifier(str(learned_run))


@pytest.fixture
def copied_run(learned_run: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(learned_run, tmp_path / "copy"))


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_classes_and_tasks_are_those_of_the_stage(learned_run, classifier):
    names = [name for task in tiny_tasks() for name in task.names]
    assert classifier.classes == tuple(names)
    assert classifier.task_of_class == (1, 1, 1, 2, 2, 2, 3)
    assert (classifier.stage, classifier.name) == (3, "run")
    first = load_classifier(str(learned_run), 1)
    assert (first.classes, first.stage) == (tuple(names[:3]), 1)
    assert first(draw_images(2)).shape == (2, 3)
    with pytest.raises(ConfigError, match="has learned 3 tasks, and stage 4 was asked for"):
        load_classifier(str(learned_run), 4)


def test_best_classes_have_the_order_of_the_logits(classifier):
    image_BCHW = draw_images(5)
    logits_BC = classifier(image_BCHW)
    probability_BC = classifier.probabilities(image_BCHW)
    assert not logits_BC.requires_grad
    torch.testing.assert_close(probability_BC.sum(dim=1), torch.ones(5))
    assert torch.equal(probability_BC.argsort(dim=1), logits_BC.argsort(dim=1))
    probability_BK, class_BK = classifier.top(image_BCHW, 4)
    assert torch.equal(class_BK, logits_BC.argsort(dim=1, descending=True)[:, :4])
    assert torch.equal(probability_BK, probability_BC.gather(1, class_BK))
    assert classifier.top(image_BCHW, 99)[1].shape == (5, len(CLASSES))


def test_classes_of_one_task_have_their_own_probabilities(classifier):
    image_BCHW, task = draw_images(5), tiny_tasks()[1]
    second = classifier.of_task(2)
    assert second.classes == task.names and second.task_of_class == (2, 2, 2)
    logits_BC = classifier(image_BCHW)[:, task.first : task.last]
    assert torch.equal(second(image_BCHW), logits_BC)
    expected_BC = classifier.method.classifier.probabilities(logits_BC)
    assert torch.equal(second.probabilities(image_BCHW), expected_BC)
    for number in (0, 4):
        with pytest.raises(ConfigError, match="is not learned; choose one from 1 to 3"):
            classifier.of_task(number)


def test_label_that_two_classes_have_is_refused():
    """must name the remedy: two data sets of a run may share a name"""
    score = Score(["sea urchin", "kite", "sea urchin"])
    assert (score.number_of("kite"), score.number_of("fox")) == (1, None)
    for name in ("sea urchin", "sea_urchin"):
        with pytest.raises(DataError, match="2 classes of the run are called .* with --task"):
            score.number_of(name)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_probabilities_of_every_classifier_rank_as_its_scores(name):
    """must hold for the scale of each classifier, also where float32 probabilities become 0"""
    kind = CLASSIFIERS[name]
    scores_BC = torch.tensor([[0.1, 0.7, -0.2], [900.0, -900.0, 0.0]], dtype=torch.float64)
    probability_BC = kind.probabilities(kind, scores_BC)
    assert kind.probability_scale > 0
    assert probability_BC.dtype == torch.float32
    assert torch.equal(probability_BC.argmax(dim=1), scores_BC.argmax(dim=1))


@pytest.mark.parametrize(
    "image_BCHW", [torch.zeros(1, 3, 21, 21), torch.zeros(1, 3, 20, 21, dtype=torch.uint8)]
)
def test_images_that_were_not_preprocessed_are_refused(classifier, image_BCHW):
    with pytest.raises(ValueError, match="give torch.uint8 .* as preprocess returns it"):
        classifier(image_BCHW)


def test_classifier_stays_on_its_device(classifier):
    with pytest.raises(ConfigError, match="cannot be moved; give load_classifier its device"):
        classifier.double()


def test_example_of_the_docstring_is_right(learned_run, tiny_images, tmp_path, monkeypatch):
    """must hold for a run in the place of the demo's and an image that it classifies correctly"""
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "tppt_vt").symlink_to(learned_run)
    (tmp_path / "kite.png").symlink_to(tiny_images / "test" / CLASSES["kite"] / "0.png")
    monkeypatch.chdir(tmp_path)
    (example,) = doctest.DocTestFinder().find(load_classifier, globs={})
    assert doctest.DocTestRunner().run(example) == (0, 5)


def test_run_loads_without_deepspeed_ray_and_storage_plugins(learned_run, tmp_path):
    """must need torch and open_clip, and nothing that only training, sweeps or clusters import"""
    blocked = ["deepspeed", "ray", "s3fs", "optuna", "webdataset", "pyarrow", "psutil"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked}))\n"
        "from pipeline import load_classifier\n"
        "print(load_classifier(sys.argv[1]).stage)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(learned_run)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (found.stdout, found.returncode) == ("3\n", 0), found.stderr


def test_import_of_the_package_is_light():
    code = "import sys, pipeline; print('torch' in sys.modules, 'pipeline.cli' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout == "False False\n"


def test_paths_of_the_machine_that_trained_play_no_part(copied_run):
    """must load where the cache, the data and the output of the run do not exist"""
    results = copied_run / "results.json"
    content = json.loads(results.read_text())
    content["manifest"]["config"]["data"]["cache"]["folder"] = "$NO_SUCH_VARIABLE/cache"
    content["manifest"]["config"]["data"]["index"] = "/nowhere/shards"
    results.write_text(json.dumps(content))
    assert load_classifier(str(copied_run)).stage == 3


def test_relative_path_of_the_weights_holds_in_every_folder(copied_run, tiny_arch, monkeypatch):
    folder = Path(tiny_arch.removeprefix("local-dir:"))
    edit(copied_run / "results.json", tiny_arch, f"local-dir:{folder.name}")
    assert f"arch: {tiny_arch}" in (copied_run / "config.yaml").read_text()
    assert load_classifier(str(copied_run)).stage == 3
    (copied_run / "config.yaml").unlink()
    with pytest.raises(WeightsError, match="have moved, give their present path"):
        load_classifier(str(copied_run))
    monkeypatch.chdir(folder.parent)
    assert load_classifier(str(copied_run)).stage == 3


def test_weights_that_moved_are_given_by_path_and_checked(copied_run, tiny_arch, tmp_path):
    for name in ("results.json", "config.yaml"):
        edit(copied_run / name, tiny_arch, "local-dir:/moved/away")
    with pytest.raises(WeightsError, match="/moved/away.*--weights of a command"):
        load_classifier(str(copied_run))
    folder = tiny_arch.removeprefix("local-dir:")
    assert load_classifier(str(copied_run), weights=folder).stage == 3
    with pytest.raises(WeightsError, match="there is no folder /gone"):
        load_classifier(str(copied_run), weights="/gone")
    other = write_clip(tmp_path / "other", seed=2).removeprefix("local-dir:")
    with pytest.raises(DataError, match="learned on a backbone with other weights"):
        load_classifier(str(copied_run), weights=other)


def test_run_at_a_url_is_loaded(learned_run, classifier):
    url = "memory://inference/run"
    for file in learned_run.rglob("*.*"):
        if file.is_file():
            name = file.relative_to(learned_run).as_posix()
            storage.write_atomically(storage.join(url, name), file.read_bytes())
    image_BCHW = draw_images(3)
    assert torch.equal(load_classifier(url)(image_BCHW), classifier(image_BCHW))


def test_preprocessing_is_the_evaluation_transform(classifier):
    image = Image.effect_noise((40, 30), 50).convert("RGB")
    assert classifier.preprocess(image).shape == (3, 21, 21)
    assert torch.equal(
        classifier.preprocess(image), classifier_module.build_transform("clip", 21)(image)
    )
