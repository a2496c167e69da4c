"""A run over real shards: exact, repeatable, the same on any number of ranks, and all on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load as from_safetensors
from torch import Tensor

from pipeline import storage
from pipeline.classifiers import Embedded
from pipeline.config import Config, dump_config
from pipeline.distributed.world import World, read_world
from pipeline.errors import DataError, DivergenceError, StorageError
from pipeline.methods import METHODS
from pipeline.methods.base import Losses
from pipeline.methods.finetune import Finetune
from pipeline.model.backbone import FrozenClip
from pipeline.model.prompts import unit
from pipeline.output.learned import load_method
from pipeline.output.results import read_results
from pipeline.tasks import Task
from pipeline.training.checked_run import check_run, with_all_options
from pipeline.training.run import execute
from tests.chaos.comparison import read_run
from tests.ranks import run_ranks
from tests.services.object_store import free_ports
from tests.tiny import CLASSES, TEST_IMAGES, TRAIN_IMAGES, build_config, tiny_tasks
from tests.variants import VARIANTS

ROOT = Path(__file__).parents[2]
ORDER = [4, 0, 6, 2, 5, 1, 3]
VT = VARIANTS["anchors kept as learned"].model_dump()  # the one with the most kinds of tensors


def run(config: Config) -> dict[str, Any]:
    """What a whole run in this process leaves in its results."""
    world = read_world({})
    execute(check_run(config, 1), world)
    return read_results(config.output).content()


def learned_files(output: str) -> list[dict[str, Tensor]]:
    """The learned tensors of each finished task."""
    names = sorted(storage.list_files(storage.join(output, "tasks")))
    return [from_safetensors(storage.read_bytes(name)) for name in names]


@pytest.fixture(scope="module")
def finished(tiny_arch: str, tiny_shards: str, tmp_path_factory) -> tuple[Config, dict[str, Any]]:
    """A run of three tasks in this process and what it found."""
    output = str(tmp_path_factory.mktemp("runs") / "alone")
    config = build_config(tiny_arch, tiny_shards, output=output, method=VT)
    return config, run(config)


# The metrics of a run that learns nothing are those of CLIP itself.


def read_images(folder: Path, split: str, name: str) -> Tensor:
    """``image_BCHW`` of one class, through open_clip's own transform up to normalisation."""
    from torchvision.transforms import v2

    resize = v2.Compose([v2.Resize(21, v2.InterpolationMode.BICUBIC), v2.CenterCrop(21)])
    files = sorted((folder / split / CLASSES[name]).iterdir())
    pixels = [np.array(resize(Image.open(file).convert("RGB"))) for file in files]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)


def curve_of(scores: Any, tasks: tuple[Task, ...], folder: Path) -> list[list[float]]:
    """``a[t][k]`` of a classifier ``scores(image_BCHW, seen names)``, class by class."""
    rows = []
    for stage in range(len(tasks)):
        names = [name for seen in tasks[: stage + 1] for name in seen.names]
        row = []
        for tested in tasks[: stage + 1]:
            right = total = 0
            for name in tested.names:
                choice_B = scores(read_images(folder, "test", name), names).argmax(dim=1)
                right += int((choice_B == names.index(name)).sum())
                total += len(choice_B)
            row.append(right / total)
        rows.append(row)
    return rows


def lower_triangle(results: dict[str, Any]) -> list[list[float]]:
    matrix = results["accuracy_matrix"]
    assert all(value is None for t, row in enumerate(matrix) for value in row[t + 1 :])
    return [row[: t + 1] for t, row in enumerate(matrix)]


def test_zeroshot_curve_is_an_independent_computation_exactly(
    tiny_arch, tiny_shards, tiny_images, tiny_clip
):
    results = run(build_config(tiny_arch, tiny_shards, output="memory://zeroshot"))

    def scores(image_BCHW: Tensor, names: list[str]) -> Tensor:
        texts = open_clip.get_tokenizer(tiny_arch)([f"a photo of a {name}." for name in names])
        text_CE = tiny_clip.clip.encode_text(texts)
        embedding_BE = tiny_clip.clip.encode_image(tiny_clip.normalise(image_BCHW))
        return unit(embedding_BE) @ unit(text_CE).T

    assert lower_triangle(results) == curve_of(scores, tiny_tasks(), tiny_images)
    assert len({value for row in lower_triangle(results) for value in row}) > 2
    assert results["trainable_parameters"] == [0, 0, 0] and results["images_per_second"] is None
    tested = [TEST_IMAGES[label] for label in ORDER]
    micro = results["stage_accuracy"]["micro"][-1]
    assert micro * sum(tested) == pytest.approx(round(micro * sum(tested)))


def test_reported_rate_counts_the_frozen_features(tiny_arch, tiny_shards, monkeypatch):
    """must count everything from the start of a task on, not only its steps"""
    clock, late_s, encode = time.perf_counter, 0.0, FrozenClip.encode_image

    def encode_slowly(clip, image_BCHW, prompt_DBLV=None, *more, **named):
        nonlocal late_s
        late_s += 0.0 if prompt_DBLV is not None else 1000.0 * len(image_BCHW)
        return encode(clip, image_BCHW, prompt_DBLV, *more, **named)

    monkeypatch.setattr(FrozenClip, "encode_image", encode_slowly)
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + late_s)
    settings = {"method": {"name": "finetune"}, "tasks": {"limit": 1}, "optim": {"epochs": 1}}
    results = run(build_config(tiny_arch, tiny_shards, output="memory://clock", **settings))
    images = sum(TRAIN_IMAGES[label] for label in ORDER[:3])
    assert results["diagnostics"][0]["train_seconds"] >= 1000.0 * images
    assert results["images_per_second"] <= 2 * images / (1000.0 * images)  # the last batch is full


# A run that learns.


def test_results_hold_what_happened(finished):
    config, results = finished
    assert results["status"] == "finished" and results["method"] == "tppt_vt"
    assert results["tasks"] == [list(task.names) for task in tiny_tasks()]
    assert [len(row) for row in lower_triangle(results)] == [1, 2, 3]
    assert results["manifest"]["class_order"] == ORDER and results["manifest"]["world_size"] == 1
    assert len(results["manifest"]["backbone_sha256"]) == 64
    assert all(count > 0 for count in results["trainable_parameters"])
    assert results["images_per_second"] > 0
    first, *later = results["diagnostics"]
    assert first["feature_drift"] is None and all(d["feature_drift"] > 0 for d in later)
    assert all(
        -1 <= d["anchor_cosine"] <= 1 and 0 <= d["modality_gap"] <= 2 for d in (first, *later)
    )
    assert all(abs(d["frozen_anchor_cosine"] - d["anchor_cosine"]) > 1e-4 for d in later)
    assert all(0 < d["cosine_to_frozen"] < 1 for d in (first, *later))
    assert sum(results["anchor_cosines"]["before"]) == 7 * 6 / 2


def test_files_beside_the_results(finished):
    config, _ = finished
    files = {str(f.relative_to(config.output)) for f in Path(config.output).rglob("*.*")}
    files = {name for name in files if not name.startswith("snapshots/")}
    tasks = {f"tasks/task-00{index}.safetensors" for index in range(3)}
    written = {"results.json", "metrics.jsonl", "predictions.jsonl", "config.yaml", "owner.json"}
    assert files == written | tasks
    written = (Path(config.output) / "config.yaml").read_text()
    assert written == dump_config(with_all_options(config))


def test_metrics_have_a_line_for_every_step_and_stage(finished):
    config, results = finished
    lines = [json.loads(line) for line in open(Path(config.output) / "metrics.jsonl")]
    steps = [line for line in lines if line["kind"] == "step"]
    stages = [line for line in lines if line["kind"] == "stage"]
    # 18, 18 and 8 images in batches of 4, two epochs
    assert [line["task"] for line in steps] == [0] * 10 + [1] * 10 + [2] * 4
    assert [line["micro"] for line in stages] == results["stage_accuracy"]["micro"]
    for line in steps:
        assert line["loss"] == pytest.approx(sum(line["terms"].values()), rel=1e-5)
        assert {"epoch", "step", "learning_rate", "images_per_second", "data_wait"} <= line.keys()
    assert steps[0]["learning_rate"] == config.optim.learning_rate > steps[9]["learning_rate"] > 0


def test_learned_tensors_are_small_and_never_the_backbone(finished, tiny_clip):
    config, results = finished
    for tensors, count in zip(
        learned_files(config.output), results["trainable_parameters"], strict=True
    ):
        assert not any(name.startswith("clip") for name in tensors)
        kept = sum(value.numel() for name, value in tensors.items() if ".kept." in name)
        assert sum(value.numel() for value in tensors.values()) == count + kept


def test_files_of_all_tasks_restore_every_stage(finished, tiny_clip, tiny_images):
    """must predict as the run did"""
    config, results = finished
    stages = {task.last: load_method(config.output, task.index + 1) for task in tiny_tasks()}

    @torch.no_grad()
    def scores(image_BCHW: Tensor, names: list[str]) -> Tensor:
        method = stages[len(names)]
        return method.logits(method.encode(image_BCHW, tiny_clip.encode_image(image_BCHW)))

    assert lower_triangle(results) == curve_of(scores, tiny_tasks(), tiny_images)


def test_what_one_task_learned_is_in_the_last_stage_to_the_bit(finished):
    config, _ = finished
    last = load_method(config.output).state_dict()
    for tensors in learned_files(config.output):
        for name, value in tensors.items():
            assert torch.equal(last[name], value) or "contexts.0" in name  # one for all tasks


def test_same_run_again_gives_the_same_bits(finished, tmp_path):
    config, _ = finished
    again = config.model_copy(update={"output": str(tmp_path / "again")})
    run(again)
    read_run(again.output).assert_equals(read_run(config.output))


@pytest.mark.parametrize(
    "machine",
    [{"engine": {"zero_stage": 1}}, {"engine": {"micro_batch": 3}}, {"data": {"workers": 2}}],
    ids=["ZeRO 1", "parts of a batch", "loader workers"],
)
def test_machine_does_not_change_the_matrix(finished, tmp_path, machine):
    config, results = finished
    tree = config.model_dump(mode="json") | {"output": str(tmp_path / "other")}
    for section, values in machine.items():
        tree[section] = tree[section] | values
    again = run(Config.model_validate(tree))
    assert again["accuracy_matrix"] == results["accuracy_matrix"]


def test_other_seed_learns_something_else(finished, tmp_path):
    config, _ = finished
    other = config.model_copy(update={"output": str(tmp_path / "other"), "seed": 2})
    run(other)
    before, after = learned_files(config.output)[0], learned_files(other.output)[0]
    assert any(not torch.equal(before[name], after[name]) for name in before)


class Meddler(Finetune):
    """Moves a tensor of the first task while it learns the second."""

    def losses(self, embedded: Embedded, label_N: Tensor) -> Losses:
        if self.task.index == 1:
            with torch.no_grad():
                self.visual_prompts.chunks[0].prompt_DMLV[0, 0, 0, 0] += 1e-7
        return super().losses(embedded, label_N)


def test_change_of_an_old_tensor_is_caught(tiny_arch, tiny_shards, monkeypatch):
    monkeypatch.setitem(METHODS, "meddler", Meddler)
    config = build_config(
        tiny_arch, tiny_shards, output="memory://meddler", method={"name": "meddler"},
        optim={"epochs": 1},
    )  # fmt: skip
    with pytest.raises(AssertionError, match="task 2 changed visual_prompts.chunks.0.prompt_DMLV"):
        run(config)
    assert read_results("memory://meddler").content()["status"] == "running"


def test_loss_that_is_no_number_ends_the_run(tiny_arch, tiny_shards):
    config = build_config(
        tiny_arch, tiny_shards, output="memory://diverged", method={"name": "finetune"},
        optim={"learning_rate": 1e30, "gradient_clipping": 0.0},
    )  # fmt: skip
    with pytest.raises(DivergenceError, match="task 1, step .*: the loss is .*; lower optim.learn"):
        run(config)


def test_task_that_fills_no_batch_ends_the_run(tiny_arch, tiny_shards):
    """must not pass over the training of a task in silence"""
    config = build_config(
        tiny_arch, tiny_shards, output="memory://drop", method={"name": "finetune"},
        data={"index": tiny_shards, "global_batch": 10, "tail": "drop"}, optim={"epochs": 1},
    )  # fmt: skip
    with pytest.raises(DataError, match="8 samples do not fill one global batch of 10; lower data"):
        run(config)


def test_only_the_first_tasks_are_learned_and_validated(tiny_arch, tiny_shards):
    """must not touch the test split: this is how a search looks at a configuration"""
    config = build_config(
        tiny_arch, tiny_shards, output="memory://search", method={"name": "finetune"},
        tasks={"limit": 2}, optim={"epochs": 1}, evaluation={"split": "validation"},
        data={"index": tiny_shards, "validation_fraction": 0.5},
    )  # fmt: skip
    results = run(config)
    assert [len(row) for row in lower_triangle(results)] == [1, 2]
    assert results["status"] == "finished" and len(results["tasks"]) == 2


def run_to(world: World, arch: str, index: str, output: str, features: str | None) -> str:
    data = {"index": index, "workers": 0, "feature_cache": features}
    config = build_config(arch, index, output=output, data=data)
    with pytest.raises(StorageError) as caught:
        execute(check_run(config, world.world_size), world)
    return str(caught.value)


def test_output_that_cannot_be_written_ends_every_rank(tiny_arch, tiny_shards, tmp_path):
    """must not leave the other ranks waiting for the one that writes"""
    (tmp_path / "file").write_text("this is no folder")
    inside = str(tmp_path / "file" / "run")
    for output, features in ((inside, None), (str(tmp_path / "run"), inside)):
        paths = (tiny_arch, tiny_shards, output, features)
        answers = run_ranks(run_to, 2, *paths, collective_s=None)
        assert answers[0] == answers[1]
        assert "rank 0: " in answers[0] and f"{inside} cannot be a folder" in answers[0]


# Two ranks, started as a user starts them.


@pytest.fixture(scope="module")
def launched(finished, tmp_path_factory) -> Iterator[tuple[Path, subprocess.CompletedProcess[str]]]:
    """The same configuration through ``deepspeed`` on two ranks."""
    folder = tmp_path_factory.mktemp("launched")
    config = finished[0].model_copy(update={"output": str(folder / "run")})
    (folder / "config.yaml").write_text(dump_config(config))
    yield folder, launch(folder / "config.yaml")


def launch(config: Path) -> subprocess.CompletedProcess[str]:
    launcher = str(Path(sys.executable).with_name("deepspeed"))
    command = [launcher, "--num_accelerators", "2", "--master_port", str(free_ports(1)[0])]
    on_cpu = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*command, str(ROOT / "pipeline/train.py"), "--config", str(config)],
        cwd=config.parent,
        env=os.environ | on_cpu,
        capture_output=True,
        text=True,
        timeout=280,
    )


def test_two_ranks_find_the_same_matrix(finished, launched):
    folder, process = launched
    assert process.returncode == 0, process.stderr
    results = read_results(str(folder / "run")).content()
    assert results["accuracy_matrix"] == finished[1]["accuracy_matrix"]
    assert results["manifest"]["world_size"] == 2
    assert results["manifest"]["config_sha256"] == finished[1]["manifest"]["config_sha256"]
    for one, two in zip(
        learned_files(finished[0].output), learned_files(str(folder / "run")), strict=True
    ):
        assert one.keys() == two.keys()
        for name in one:
            error = float((one[name] - two[name]).norm())
            assert error <= 1e-3 * float(one[name].norm()) + 1e-6, name


def test_log_of_two_ranks_is_plain_lines_of_one(launched):
    _, process = launched
    lines = [line for line in process.stderr.splitlines() if "task 1/3 epoch" in line]
    assert len(lines) == 10 and all(" r0 progress: " in line for line in lines)
    assert "loss" in lines[0] and "images/s" in lines[0] and "data wait" in lines[0]
    assert "\x1b" not in process.stderr and "Traceback" not in process.stderr
