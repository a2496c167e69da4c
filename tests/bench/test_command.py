"""The command measures with tiny sizes, prints a table and writes valid JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from pipeline.bench.__main__ import BENCHMARKS, main, parse_arguments

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
    content = bench(tiny_arch, tmp_path, "step")
    assert content["schema"] == 1 and content["settings"]["bench"]["seen"] == 6
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
    content = bench(tiny_arch, tmp_path, "step", "method.name=zeroshot")
    assert content["benchmarks"]["step"] == {
        "not_measured": "zeroshot trains nothing in this task", "figures": [],
    }  # fmt: skip


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
