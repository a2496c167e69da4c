"""The command measures with tiny sizes, prints a table and writes valid JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.bench import gpu, launch
from pipeline.bench.__main__ import BENCHMARKS, main, parse_arguments
from pipeline.bench.settings import load_bench_config
from pipeline.bench.stage import open_stage
from pipeline.distributed.world import read_world
from pipeline.errors import ConfigError
from tests.tiny import JOINT_WIDTH

TINY = [
    "model.weights=null", "tasks.classes_per_task=3", "bench.seen=6", "bench.batches=[4]",
    "bench.repeats=2", "bench.warmup=0", "bench.ceiling_side=64",
]  # fmt: skip


def bench(arch: str, folder: Path, *words: str) -> dict[str, Any]:
    """The JSON that the command writes."""
    file = folder / "speed.json"
    assert main([*words, f"model.arch={arch}", *TINY, "--json", str(file)]) == 0
    return json.loads(file.read_text())


def figures(content: dict[str, Any], name: str) -> dict[str, dict[str, Any]]:
    """The figures of one benchmark by name, each of them a positive number with its spread."""
    found = content["benchmarks"][name]
    assert found["not_measured"] is None
    for figure in found["figures"]:
        low, value, high = (figure[key] for key in ("low", "value", "high"))
        assert 0 <= low <= value <= high < math.inf, figure
    return {figure["name"]: figure for figure in found["figures"]}


def test_step_is_measured_beside_the_straightforward_one(tiny_arch, tmp_path, capsys):
    option = "method.options.tppt_vt.visual_prompts.first_layer=1"  # the other side needs pixels
    content = bench(tiny_arch, tmp_path, "step", option)
    assert content["schema"] == 1
    assert content["benchmarks"]["step"]["settings"]["bench"]["seen"] == 6
    machine = content["machine"]
    assert machine["cores"] > 0 and machine["threads"] > 0 and machine["ranks"] == 1
    assert machine["packages"]["torch"] and machine["cpu"] and machine["gpus"] is not None
    found = figures(content, "step")
    ratio, ours = found["batch 4: ours against it"], found["batch 4: ours"]
    assert ratio["repeats"] == 2 and ratio["unit"] == "×" and ratio["target"] == ""
    assert ours["unit"] == "images/s"
    parts = ("data wait", "transfer", "forward", "communication", "backward", "optimizer")
    assert all(found[f"batch 4: {part}"]["unit"] == "s" for part in parts)
    assert "batch 4: ours against it" in capsys.readouterr().out


def test_method_that_trains_nothing_is_not_measured(tiny_arch, tmp_path):
    found = bench(tiny_arch, tmp_path, "step", "method.name=zeroshot")["benchmarks"]["step"]
    assert found["not_measured"] == "zeroshot trains nothing in this task"
    assert found["figures"] == []


def test_texts_tests_and_closed_forms_are_measured(tiny_arch, tmp_path):
    sizes = ["bench.text_classes=[3,5]", "bench.images=6", "bench.features=70"]
    content = bench(tiny_arch, tmp_path, "text", "eval", "fit", *sizes)
    texts = figures(content, "text")
    assert {f"{n} classes, {kind}" for n in (3, 5) for kind in ("frozen", "learned")} == {*texts}
    tests = {"first test of an image", "after another task", "while embeddings stay"}
    assert tests == {*figures(content, "eval")}
    assert figures(content, "fit")["ridge: later tasks"]["unit"] == "features/s"


def test_sequence_is_measured_beside_encoding_once(tiny_arch, tiny_shards, tmp_path):
    words = [f"data.index={tiny_shards}", "method.name=simplecil"]
    found = figures(bench(tiny_arch, tmp_path, "sequence", *words), "sequence")
    assert found["the sequence against it"]["target"] == "≤ 1.1"
    assert "simplecil, 3 tasks" in found


def test_growth_is_measured(tiny_arch, tmp_path):
    """must show what grows: a snapshot holds the class means of all earlier classes"""
    found = figures(bench(tiny_arch, tmp_path, "scale", "bench.scale=[[1,3],[4,12]]"), "scale")
    first, last = (found[f"task {n}, {3 * n} classes: snapshot"]["value"] for n in (1, 4))
    assert (last - first) * 1e6 == pytest.approx(9 * 4 * JOINT_WIDTH, abs=1)
    assert found["task 4, 12 classes: step"]["unit"] == "s"
    efficiency = [f["value"] for name, f in found.items() if "100 Gb/s" in name]
    assert sorted(efficiency, reverse=True) == efficiency and len(efficiency) == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_gpu_is_not_measured_without_one(tmp_path, capsys):
    file = tmp_path / "speed.json"
    assert main(["gpu", "--json", str(file)]) == 0
    assert "gpu: not measured: no GPU" in capsys.readouterr().out
    found = json.loads(file.read_text())["benchmarks"]["gpu"]
    assert found["not_measured"] == "no GPU"
    assert found["settings"]["model"]["arch"] == "ViT-L-14-quickgelu"


def test_figures_of_a_gpu_come_from_any_device(tiny_arch):
    """must run before a GPU is found; on the CPU the loss is that of the CPU"""
    words = [f"model.arch={tiny_arch}", *TINY, "data.workers=0", "data.global_batch=4"]
    config, world = load_bench_config("gpu", None, words), read_world({})
    with open_stage(config, world, seen=6, images=3) as stage:
        pair, busy = list(gpu.moving_against_fixed(stage, config)), list(gpu.busy(stage))
        difference = gpu.loss_difference(stage)
    assert [figure.name for figure in pair][-1] == "tppt_vt against tppt_v"
    assert all(figure.value > 0 for figure in pair) and busy[0].value > 0
    assert 0 <= busy[1].value <= 100 and difference.value == 0


@pytest.mark.slow
def test_start_is_measured_from_the_command_on(tiny_arch, tmp_path):
    """must sum up: the parts are what passes between the command and the first step"""
    found = figures(bench(tiny_arch, tmp_path, "launch", "bench.repeats=1"), "launch")
    for launcher, parts in launch.PARTS_OF.items():
        spent = sum(found[f"{launcher}: {part}"]["value"] for part in parts)
        assert spent == pytest.approx(found[f"{launcher}: command to first step"]["value"])


def test_benchmark_needs_a_number_of_classes():
    config = load_bench_config("step", None, ["tasks.classes_per_task=all"])
    with pytest.raises(ConfigError, match="'all'; a benchmark needs a number"):
        str(config.task_classes)


def test_benchmarks_and_settings_come_in_any_order():
    options = parse_arguments(["bench.repeats=3", "step", "seed=2", "--json", "a.json"])
    assert options.names == ["step"] and options.overrides == ["bench.repeats=3", "seed=2"]
    assert parse_arguments([]).names == [*BENCHMARKS]


@pytest.mark.parametrize("word, problem", [("stp", "'stp' is not a benchmark"), ("", "''")])
def test_unknown_benchmark_is_refused(word: str, problem: str, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse_arguments([word])
    assert problem in capsys.readouterr().err


def test_unknown_size_is_refused(capsys):
    assert main(["step", "bench.repeat=3"]) == 2
    assert "bench.repeat is not a known key; did you mean 'repeats'?" in capsys.readouterr().err
