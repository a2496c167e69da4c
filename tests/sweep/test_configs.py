"""Every shipped sweep fits its run, and its header describes it."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from pipeline.config import load_config
from pipeline.methods import parse_options
from pipeline.sweep.config import load_sweep
from pipeline.sweep.plan import SweepPlan
from pipeline.sweep.space import parse_space
from pipeline.tune import parse_arguments
from tests.test_configs import ROOT, header

FILES = sorted((ROOT / "configs").glob("tune_*.yaml"))


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def file(request, monkeypatch) -> Path:
    monkeypatch.chdir(ROOT)
    return request.param


def test_header_gives_command_cost_and_expectation(file):
    parts = header(file)
    assert parts.keys() == {"", "Data", "Run", "Cost", "Expect"} and len(parts[""]) > 20
    words = shlex.split(parts["Run"])
    options = parse_arguments(words[3:5])  # a further command may stand behind
    assert words[:3] == ["python", "-m", "pipeline.tune"]
    assert options.config == f"configs/{file.name}"


def test_every_corner_of_its_space_is_a_run(file):
    sweep = load_sweep(file)
    run = load_config(sweep.run, sweep.overrides)
    plan = SweepPlan(sweep, run, run, parse_space(sweep.space, run.model_dump(mode="json")))
    for parameters in (*plan.first, *plan.space.corners()):
        config = plan.run_config(parameters, 0, 0)
        parse_options(config.method)
        assert config.evaluation.split == "validation"
        assert config.data.global_batch % sweep.resources.ranks == 0
    assert sweep.output == f"runs/{sweep.name}" and sweep.protocol == "first_k_tasks"
