"""Runs of methods outside the package: fits, features without pixels, images of all seen tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline import storage
from pipeline.config import Config
from pipeline.data import batch as batch_module
from pipeline.distributed.world import read_world
from pipeline.errors import ConfigError, DataError
from pipeline.model.backbone import FrozenClip
from pipeline.model.prompts import unit
from pipeline.output.learned import load_method
from pipeline.output.results import finished_results
from pipeline.training.checked_run import check_run
from pipeline.training.dry_run import format_plan
from pipeline.training.run import execute
from tests.chaos.comparison import read_run
from tests.interruptions import start_on_ranks
from tests.shards import draw_samples, store
from tests.tiny import TEST_IMAGES, TRAIN_IMAGES, build_config, tiny_tasks
from tests.training.test_trainer import curve_of, lower_triangle, read_images, run
from tests.variants import VARIANTS

N_IMAGES = sum(TRAIN_IMAGES) + sum(TEST_IMAGES)


def configure(arch: str, index: str, output: str, label: str, **sections: Any) -> Config:
    method = VARIANTS[label].model_dump()
    return build_config(arch, index, output=output, method=method, **sections)


def train_features(clip: FrozenClip, folder: Path, names: list[str]) -> list[Tensor]:
    """The unit embeddings of each class's training images."""
    return [embed(clip, read_images(folder, "train", name)) for name in names]


def embed(clip: FrozenClip, image_BCHW: Tensor) -> Tensor:
    return unit(clip.clip.encode_image(clip.normalise(image_BCHW))).double()


@pytest.mark.parametrize("label", ["class means", "simplecil"])
def test_class_means_are_an_independent_computation(
    label, tiny_arch, tiny_shards, tiny_images, tiny_clip
):
    """must be the nearest mean of unit embeddings, and for SimpleCIL of raw features"""
    results = run(configure(tiny_arch, tiny_shards, f"memory://means/{label[0]}", label))
    prepare = unit if label == "class means" else torch.nn.Identity()

    def encode(image_BCHW: Tensor) -> Tensor:
        return prepare(tiny_clip.clip.encode_image(tiny_clip.normalise(image_BCHW)).double())

    def scores(image_BCHW: Tensor, names: list[str]) -> Tensor:
        means = [encode(read_images(tiny_images, "train", name)).mean(dim=0) for name in names]
        return unit(encode(image_BCHW)) @ unit(torch.stack(means)).T

    assert lower_triangle(results) == curve_of(scores, tiny_tasks(), tiny_images)
    assert results["last_accuracy"] > 0.5, "colours are easy for class means"
    assert results["trainable_parameters"] == [0, 0, 0]
    assert all(stage["anchor_cosine"] is None for stage in results["diagnostics"])


def test_ridge_is_an_independent_computation(tiny_arch, tiny_shards, tiny_images, tiny_clip):
    results = run(configure(tiny_arch, tiny_shards, "memory://ridge", "ridge"))

    def scores(image_BCHW: Tensor, names: list[str]) -> Tensor:
        classes = train_features(tiny_clip, tiny_images, names)
        rows_SE = torch.cat(classes)
        target_SC = torch.block_diag(*(torch.ones(len(rows), 1) for rows in classes)).double()
        gram_EE = rows_SE.T @ rows_SE + torch.eye(rows_SE.shape[1]).double()
        return embed(tiny_clip, image_BCHW) @ torch.linalg.solve(gram_EE, rows_SE.T @ target_SC)

    assert lower_triangle(results) == curve_of(scores, tiny_tasks(), tiny_images)


@pytest.mark.parametrize("label", ["class means", "ridge", "linear layer"])
def test_method_of_features_decodes_and_encodes_each_image_once(
    label, tiny_arch, tiny_shards, monkeypatch
):
    """must hold over all epochs, fits and tests of the whole sequence"""
    decoded, encoded = [], []
    decode, encode = batch_module.decode_sample, FrozenClip.encode_image

    def counting_decode(record: bytes, *, key: str, label: int) -> Any:
        decoded.append(key)
        return decode(record, key=key, label=label)

    def counting_encode(clip: FrozenClip, image_BCHW: Tensor, **options: Any) -> Any:
        encoded.append(int(image_BCHW.flatten(1).any(dim=1).sum()))  # without blank ones
        return encode(clip, image_BCHW, **options)

    monkeypatch.setattr(batch_module, "decode_sample", counting_decode)
    monkeypatch.setattr(FrozenClip, "encode_image", counting_encode)
    run(configure(tiny_arch, tiny_shards, f"memory://once/{label[0]}", label))
    assert len(decoded) == N_IMAGES and sum(encoded) == N_IMAGES


@pytest.mark.slow
@pytest.mark.parametrize(
    ("label", "world_sizes"),
    [("ridge", (1, 2)), ("ridge on tuned prompts", (1, 2, 4)), ("linear layer", (1, 2))],
)
def test_fits_have_the_same_bits_on_any_number_of_ranks(
    label, world_sizes, tiny_arch, tiny_shards, tmp_path
):
    outcomes = []
    for world_size in world_sizes:
        output = str(tmp_path / str(world_size))
        config = configure(
            tiny_arch, tiny_shards, output, label,
            optim={"gradient_clipping": 0.0}, engine={"micro_batch": 2},
            data={"index": tiny_shards, "global_batch": 8, "eval_batch": 5, "workers": 0},
        )  # fmt: skip
        assert start_on_ranks(world_size, config)
        outcomes.append(read_run(output))
    for other in outcomes[1:]:
        other.assert_equals(outcomes[0])


def test_method_of_features_takes_replacements_as_one_of_images_does(tiny_arch, tmp_path):
    """must train on the next image of the class where one cannot be used"""
    index = str(tmp_path / "shards")
    store(index, draw_samples(), damaged={"ant/003": b"", "cat/007": b"torn"})
    data = {"on_bad_sample": "skip", "bad_sample_budget": 2, "index": index}
    tasks = {"class_order": "natural", "classes_per_task": 2}
    config = configure(tiny_arch, index, str(tmp_path / "run"), "linear layer", data=data,
                       tasks=tasks)  # fmt: skip
    assert execute(check_run(config, 1), read_world({}))
    skipped = finished_results(config.output).skipped_samples
    assert {sample.key for sample in skipped} == {"ant/003", "cat/007"}


def test_features_and_random_images_do_not_go_together(tiny_arch, tiny_shards):
    config = configure(tiny_arch, tiny_shards, "memory://x", "ridge",
                       data={"train_transform": "random_crop"})  # fmt: skip
    with pytest.raises(ConfigError, match="data.train_transform: 'random_crop' .* set it to clip"):
        check_run(config, 1)


def test_upper_bound_has_no_statistics_of_one_task(tiny_arch, tiny_shards):
    """must be refused: the images of earlier tasks would be counted again"""
    options = {"joint": {"classifier": {"name": "ridge"}}}
    method = {"name": "joint", "options": options}
    config = build_config(tiny_arch, tiny_shards, output="memory://x", method=method)
    with pytest.raises(ConfigError, match="classifier: 'ridge' takes the images of one task"):
        check_run(config, 1)


def test_all_seen_images_are_shown_to_a_method_that_wants_them(tiny_arch, tiny_shards, tmp_path):
    config = build_config(
        tiny_arch, tiny_shards, output=str(tmp_path / "run"), optim={"epochs": 1},
        method={
            "name": "joint",
            "options": {
                "joint": {
                    "loss_classes": "seen",
                    "visual_prompts": {"generator": "shared", "growth": "tuned"},
                }
            },
        },
    )  # fmt: skip
    planned = check_run(config, 1)
    images = [TRAIN_IMAGES[label] for label in config.tasks.class_order]
    seen = [sum(images[: task.last]) for task in planned.tasks]
    assert [len(planned.data.train(task)) for task in planned.tasks] == seen
    rows = [line.split() for line in format_plan(planned).splitlines()]
    steps = [int(row[4]) for row in rows if row and row[0] in ("1", "2", "3")]
    assert steps == [-(-count // 4) for count in seen]
    assert execute(planned, read_world({}))


# A run's method is loaded from its output.


@pytest.fixture(scope="module")
def learned(tiny_arch: str, tiny_shards: str, tmp_path_factory) -> Config:
    output = str(tmp_path_factory.mktemp("runs") / "learned")
    config = configure(tiny_arch, tiny_shards, output, "ridge on tuned prompts")
    run(config)
    return config


def copy_to_url(folder: str, url: str) -> str:
    for file in Path(folder).rglob("*.*"):
        name = str(file.relative_to(folder))
        storage.write_atomically(storage.join(url, name), file.read_bytes())
    return url


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_loaded_method_predicts_as_the_run_did(learned, stage, tiny_clip, tiny_images):
    """must hold for every stage, from a URL, without the training data"""
    method = load_method(copy_to_url(learned.output, f"memory://learned/{stage}"), stage)

    @torch.no_grad()
    def scores(image_BCHW: Tensor, names: list[str]) -> Tensor:
        assert len(names) <= tiny_tasks()[stage - 1].last
        return method.logits(method.encode(image_BCHW, tiny_clip.encode_image(image_BCHW)))

    names = [name for task in tiny_tasks()[:stage] for name in task.names]
    expected = finished_results(learned.output).accuracy_matrix[stage - 1]
    for task, accuracy in zip(tiny_tasks()[:stage], expected, strict=False):
        hits = [
            int(choice == names.index(name))
            for name in task.names
            for choice in scores(read_images(tiny_images, "test", name), names).argmax(dim=1)
        ]
        assert sum(hits) / len(hits) == accuracy


@pytest.mark.parametrize("stage", [0, 4])
def test_stage_that_was_not_learned_is_refused(learned, stage):
    with pytest.raises(ConfigError, match=f"has learned 3 tasks, and stage {stage} .* 1 to 3"):
        load_method(learned.output, stage)


def test_file_that_the_run_did_not_write_is_refused(learned):
    url = copy_to_url(learned.output, "memory://learned/changed")
    first, second = (storage.join(url, "tasks", f"task-00{n}.safetensors") for n in (0, 1))
    storage.write_atomically(first, storage.read_bytes(second))
    with pytest.raises(DataError, match="task-000.safetensors: is not the file that the run wrote"):
        load_method(url)


def test_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no results.json; give a run's output"):
        load_method(str(tmp_path))


def test_names_outside_the_package_are_checked(tiny_arch, tiny_shards):
    for name, words in [
        ("tests.probes:Nothing", "cannot be imported .*; write package.module:Class"),
        ("no.such.module:X", "cannot be imported .*No module named 'no'"),
        ("tests.probes:Ridge", "is no method; derive it from pipeline.methods.base"),
    ]:
        config = build_config(tiny_arch, tiny_shards, method={"name": name})
        with pytest.raises(ConfigError, match=f"method.name: '{name}' {words}"):
            check_run(config, 1)
