"""Towers in bf16 on the CPU: training, snapshot, resume and tests run as they do on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.config import Config
from pipeline.data.prepare.sharding import Recipe, write_shards
from pipeline.demo.drawing import DEMO_NOUNS, write_images
from pipeline.distributed.world import read_world
from pipeline.model.backbone import tower_dtype
from pipeline.model.weights import load_clip
from pipeline.output.learned import load_method
from pipeline.output.results import finished_results
from pipeline.training.checked_run import check_run
from pipeline.training.run import execute
from tests.chaos.comparison import read_run
from tests.interruptions import StopAt, changed, start
from tests.tiny import build_config

CLIP = f"local-dir:{Path(__file__).parents[2] / 'pipeline/demo/clip'}"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Two tasks of three drawn nouns, learned by the demo's CLIP."""
    folder = tmp_path_factory.mktemp("drawn")
    per_class = {"train": 24, "test": 40}
    write_images(folder / "images", nouns=DEMO_NOUNS[:6], per_class=per_class)
    write_shards(str(folder / "images"), str(folder / "shards"), Recipe())
    return build_config(
        CLIP,
        str(folder / "shards"),
        output=str(folder / "fp32"),
        data={"index": str(folder / "shards"), "global_batch": 12, "eval_batch": 64, "workers": 0},
        tasks={"class_order": "natural", "classes_per_task": 3},
        method={"name": "tppt_vt"},
        optim={"epochs": 2, "learning_rate": 1e-3},
        snapshot={"every_steps": 4},
    )


def in_bf16(config: Config, output: Path) -> Config:
    """The same run with its towers in bf16."""
    return changed(config, output=str(output), model={"precision": "bf16"})


def test_accuracies_in_bf16_are_within_a_point_of_those_in_fp32(config, tmp_path):
    """must hold after each task, and for the run that is loaded again from its output"""
    half = in_bf16(config, tmp_path / "bf16")
    for each in (config, half):
        assert execute(check_run(each, 1), read_world({}))
    exact, found = (finished_results(each.output) for each in (config, half))
    assert found.average_incremental_accuracy > 0.5, "better than chance by far"
    for one, other in zip(exact.stage_accuracy.micro, found.stage_accuracy.micro, strict=True):
        assert abs(one - other) <= 0.0101
    method = load_method(half.output)
    assert method.clip.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in method.parameters()), "what is learned is fp32"


def test_stopped_run_in_bf16_continues_with_the_same_bits(config, tmp_path):
    """must find the snapshot of bf16, and refuse to continue it in fp32"""
    whole, stopped = (in_bf16(config, tmp_path / name) for name in ("whole", "stopped"))
    assert start(whole)
    assert not start(stopped, StopAt(9))
    with pytest.raises(Exception, match="model.precision='bf16' instead of 'fp32'"):
        start(changed(stopped, model={"precision": "fp32"}))
    assert start(stopped)
    read_run(stopped.output).assert_equals(read_run(whole.output))


@pytest.mark.parametrize(
    ("precision", "device", "expected"),
    [
        ("auto", "cpu", torch.float32),
        ("auto", "cuda", torch.bfloat16),
        ("fp32", "cuda", torch.float32),
        ("bf16", "cpu", torch.bfloat16),
    ],
)
def test_towers_have_the_type_that_was_asked_for(precision, device, expected):
    assert tower_dtype(precision, torch.device(device)) == expected


def test_weights_have_one_hash_in_every_precision(tiny_arch):
    clips = [load_clip(tiny_arch, None, device=torch.device("cpu"), precision=precision)
             for precision in ("fp32", "bf16")]  # fmt: skip
    assert clips[0].sha256 == clips[1].sha256
    assert [clip.dtype for clip in clips] == [torch.float32, torch.bfloat16]
