"""Special exports: for open_clip itself, with several seeds, and of a method of one's own."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open

from pipeline.distributed.world import read_world
from pipeline.errors import DataError
from pipeline.export import main
from pipeline.inference import load_classifier
from pipeline.output.results import finished_results
from pipeline.training.checked_run import check_run
from pipeline.training.run import execute
from tests.tiny import build_config


@pytest.fixture(scope="module")
def runs(tiny_arch: str, tiny_shards: str, tmp_path_factory) -> dict[str, str]:
    """Finished runs: two seeds and class orders, another experiment, a method of the tests."""
    folder = tmp_path_factory.mktemp("runs")
    settings = {
        "1": {"seed": 1},
        "2": {"seed": 2, "tasks": {"class_order": [*range(7)]}},
        "other": {"method": {"name": "simplecil"}},
        "own": {"method": {"name": "tests.probes:KeyPool"}, "optim": {"epochs": 1}},
    }
    for name, sections in settings.items():
        output = str(folder / name)
        config = build_config(tiny_arch, tiny_shards, output=output, report=False, **sections)
        execute(check_run(config, 1), read_world({}))
    return {name: str(folder / name) for name in settings}


def test_run_without_prompts_has_embeddings_for_open_clip(runs, tmp_path):
    out = tmp_path / "out"
    assert main(["--run", runs["1"], "--out", str(out)]) == 0
    with safe_open(out / "class_embeddings.safetensors", "pt") as file:
        classes = json.loads(file.metadata()["classes"])
        assert file.get_tensor("class_embeddings").shape == (7, 19)
    assert tuple(classes) == load_classifier(runs["1"]).classes
    assert "class_embeddings.safetensors" in (out / "README.md").read_text()


def test_card_of_several_seeds_has_mean_and_deviation(runs, tmp_path):
    out = tmp_path / "out"
    command = ["--run", runs["1"], "--out", str(out), "--seeds", runs["1"], runs["2"]]
    assert main(command) == 0
    values = [100 * finished_results(runs[name]).average_incremental_accuracy for name in "12"]
    mean, deviation = torch.tensor(values).mean(), torch.tensor(values).std()
    card = (out / "README.md").read_text()
    assert "| figure | this run | mean ± sd over 2 runs |" in card
    row = f"| average over all tasks | {values[0]:.2f} | {mean:.2f} ± {deviation:.2f} |"
    assert row in card


def test_seeds_of_another_experiment_are_refused(runs, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["--run", runs["1"], "--out", str(out), "--seeds", runs["other"]]) == 2
    assert "give runs of the same experiment to --seeds" in capsys.readouterr().err


def test_method_of_ones_own_is_exported_as_a_program(runs, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["--run", runs["own"], "--out", str(out)]) == 2
    assert "KeyPool gives no visual prompts" in capsys.readouterr().err
    assert main(["--run", runs["own"], "--out", str(out), "--torch-export", "--verify"]) == 0
    printed = capsys.readouterr().out
    assert "as the program classifier.pt2 alone" in printed and " 0 predicted otherwise" in printed
    assert sorted(file.name for file in out.iterdir()) == [
        "README.md",
        "classifier.pt2",
        "export.json",
    ]
    assert json.loads((out / "export.json").read_text())["heads"] == []
    assert "run code" in (out / "README.md").read_text()
    with pytest.raises(DataError, match="load it by torch.export.load, or use the run"):
        load_classifier(str(out))
