"""The tables of finished runs against figures computed by hand; other runs are refused."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import cache, reduce
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.compare import main
from pipeline.config import EvaluationConfig, TuningConfig
from pipeline.output.results import finished_results
from tests.stages import build_results, stage
from tests.tiny import CLASSES

STAGES = ((8,), (6, 8), (5, 7, 9))


def write_run(
    output: str, method: str, *correct: tuple[int, ...], seed: int = 1, **fields: Any
) -> str:
    """A run with ten images per task and, for each stage, the correct predictions per task."""
    stages = [stage(row, (10,) * len(row)) for row in correct]
    settings = {"seed": seed, "output": output, **fields.pop("settings", {})}
    build_results(stages, method=method, settings=settings, **fields).build().write(output)
    return output


def cells(text: str) -> dict[str, list[str]]:
    """The cells of each row of a printed table by its first cell."""
    rows = [[cell.strip() for cell in line.strip("┃│ \n").replace("┃", "│").split("│")]
            for line in text.splitlines() if "│" in line or "┃" in line]  # fmt: skip
    return {row[0]: row[1:] for row in rows}


def table_of(capsys, *arguments: str) -> dict[str, list[str]]:
    """The cells that the command prints."""
    assert main(arguments) == 0
    return cells(capsys.readouterr().out)


def refusal_of(capsys, *arguments: str) -> str:
    """The sentence with which the command refuses."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err


def test_columns_are_methods_and_rows_are_stages_and_figures(capsys):
    outputs = [
        write_run("memory://compare/a1", "tppt_v", (8,), (6, 8), (5, 7, 9)),
        write_run("memory://compare/a2", "tppt_v", (10,), (8, 8), (7, 7, 9), seed=2),
        write_run("memory://compare/b", "zeroshot", (5,), (5, 5), (5, 5, 5)),
    ]
    table = table_of(capsys, *outputs)
    assert table["after task"] == ["tppt_v ×2", "zeroshot"]
    assert table["1"] == ["90.0 ± 14.1", "50.0"]
    assert table["3"] == ["73.3 ± 4.7", "50.0"]
    assert table["average"] == ["79.4 ± 8.6", "50.0"]
    assert table["last"] == ["73.3 ± 4.7", "50.0"]
    assert table["forgetting"] == ["20.0 ± 0.0", "0.0"]


def test_unknown_figure_is_a_dash(capsys):
    output = write_run("memory://compare/one", "finetune", (8,), n_tasks=1)
    assert table_of(capsys, output)["forgetting"] == ["–"]


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("memory://compare/nowhere", "memory://compare/nowhere: holds no results.json"),
        ("memory://compare/half", "holds a run that is running; a finished run is wanted; let"),
    ],
)
def test_output_without_a_finished_run_is_refused(capsys, output, words):
    write_run("memory://compare/half", "finetune", (8,))
    assert words in refusal_of(capsys, output)


PROTOCOLS = {
    "order": {"settings": {"tasks": {"class_order": "natural"}}},
    "order seed": {"settings": {"tasks": {"class_order": "lamda", "order_seed": 7}}},
    "boundaries": {"settings": {"tasks": {"initial_classes": 1}}},
    "number of tasks": {"n_tasks": 1},
    "templates": {"settings": {"text": {"templates": ["art of a {}."]}}},
    "names": {"settings": {"text": {"names": "raw"}}},
    "class names": {"class_names": ["fox", *list(CLASSES)[1:]]},
    "ensemble": {"settings": {"text": {"ensemble": True}}},
    "test transform": {"settings": {"data": {"eval_transform": "squash"}}},
    "training transform": {"settings": {"data": {"train_transform": "random_crop"}}},
    "held-out images": {"settings": {"data": {"validation_fraction": 0.25}}},
    "weights": {"weights": "random"},
    "architecture": {"settings": {"model": {"arch": "ViT-B-16", "weights": "openai"}}},
    "data": {"data": "sketches", "settings": {"data": {"index": "elsewhere"}}},
    "excluded tasks": {"evaluation": EvaluationConfig(exclude_tasks=2)},
    "task label space": {"evaluation": EvaluationConfig(label_space="task")},
    "united label space": {"evaluation": EvaluationConfig(label_space="all")},
}
ORDER = "tasks.class_order is [4, 0, 6, 2, 5, 1, 3] in {} and "
WORDS = {
    "order": ORDER + "natural in {}",
    "order seed": ORDER + "lamda with tasks.order_seed=7 in {}",
    "boundaries": "tasks.initial_classes is 0 (3 tasks of 3, 3, 1 classes) in {} and 1 (3 tasks of "
    "1, 3, 3 classes) in {}",
    "number of tasks": "tasks.limit is null (3 tasks of 3, 3, 1 classes) in {} and 1 (1 task(s) of "
    "3 classes) in {}",
    "templates": 'text.templates is ["a photo of a {{}}."] in {} and ["art of a {{}}."] in {}',
    "names": "text.names is spaced in {} and raw in {}",
    "class names": "the name of a class is red fox in {} and fox in {}",
    "ensemble": "text.ensemble is false in {} and true in {}",
    "test transform": "data.eval_transform is clip in {} and squash in {}",
    "training transform": "data.train_transform is clip in {} and random_crop in {}",
    "held-out images": "data.validation_fraction is 0.0 in {} and 0.25 in {}",
    "weights": "model.weights is local-dir:clip (sha256 HASH…) in {} and local-dir:clip (sha256 "
    "HASH…) in {}",
    "architecture": "model.arch is local-dir:clip in {} and ViT-B-16 in {}",
    "data": "data.index is shards (sha256 HASH…) in {} and elsewhere (sha256 HASH…) in {}",
    "excluded tasks": "evaluation.exclude_tasks is 0 in {} and 2 in {}",
    "task label space": "evaluation.label_space is seen in {} and task in {}",
    "united label space": "evaluation.label_space is seen in {} and all in {}",
}


@cache
def write_protocols() -> dict[str, str]:
    """Runs of zeroshot that differ in one setting of the protocol each, and a plain one."""
    return {
        name: write_run(
            f"memory://protocols/{name.replace(' ', '-')}", "zeroshot",
            *STAGES[: fields.get("n_tasks", 3)], **fields,
        )
        for name, fields in {"plain": {}, **PROTOCOLS}.items()
    }  # fmt: skip


@pytest.mark.parametrize("name", PROTOCOLS)
def test_runs_of_two_protocols_are_refused_with_the_setting_and_both_values(capsys, name):
    outputs = write_protocols()
    sentence = refusal_of(capsys, outputs["plain"], outputs[name])
    words = WORDS[name].format(outputs["plain"], outputs[name])
    assert f"the 2 runs follow 2 protocols: {words}; compare runs of one protocol, or" in re.sub(
        r"sha256 [0-9a-f]{8}…", "sha256 HASH…", sentence
    )
    assert ("--over order" in sentence) == ("class_order" in words)


def test_every_setting_that_differs_among_many_runs_is_named(capsys):
    outputs = write_protocols()
    sentence = refusal_of(capsys, *outputs.values())
    assert f"the {len(outputs)} runs follow {len(outputs)} protocols: " in sentence
    for setting in ("class_order", "templates", "eval_transform", "weights", "index", "arch"):
        assert sentence.count(f".{setting} is ") == 1


def test_hashes_of_protocols_differ_where_the_protocols_do():
    results = [finished_results(output) for output in write_protocols().values()]
    assert len({run.protocol.sha256 for run in results}) == len(results)


def test_runs_tested_on_other_numbers_of_images_are_refused(capsys):
    """must hold where a test skipped damaged images: no setting shows it"""
    outputs = ["memory://tested/all", "memory://tested/fewer"]
    for output, last in zip(outputs, (10, 9), strict=True):
        stages = [stage((5,) * n, (10,) * (n - 1) + (last,)) for n in (1, 2, 3)]
        build_results(stages, method="zeroshot").build().write(output)
    words = f"the number of tested images is 30 (10, 10, 10 by task) in {outputs[0]} and 29 ("
    assert words in refusal_of(capsys, *outputs)


def test_other_images_of_one_index_are_refused(capsys):
    """must believe the hashes of the tasks' images before that of the index"""
    outputs = [
        write_run(f"memory://images/{n}", "finetune", *STAGES, data="kites", seed=n) for n in (1, 2)
    ]
    content = json.loads(storage.read_text(f"{outputs[1]}/results.json"))
    content["manifest"]["identity"]["tasks"][1]["sha256"] = "0" * 64
    storage.write_atomically(f"{outputs[1]}/results.json", json.dumps(content).encode())
    assert f"and shards (sha256 00000000…) in {outputs[1]}" in refusal_of(capsys, *outputs)


def test_same_data_at_two_places_are_one_protocol(capsys):
    outputs = [
        write_run(
            f"memory://places/{seed}", "finetune", *STAGES, seed=seed,
            settings={"data": {"index": index}},
        )
        for seed, index in enumerate(("s3://bucket/tinar", "/data/tinar"))
    ]  # fmt: skip
    assert table_of(capsys, *outputs)["after task"] == ["finetune ×2"]


def test_grouped_by_protocol_each_has_a_table_that_names_its_difference(capsys):
    outputs = write_protocols()
    names = ("plain", "templates", "test transform")
    assert main([outputs[name] for name in names] + ["--group-by", "protocol"]) == 0
    first, second, third = capsys.readouterr().out.split("protocol ")[1:]
    assert first.startswith("1\n")
    assert second.startswith('2: text.templates is ["art of a {}."], not ["a photo of a {}."]\n')
    assert third.startswith("3: data.eval_transform is squash, not clip\n")
    for text in (first, second, third):
        assert cells(text)["after task"] == ["zeroshot"]


def test_rows_are_told_apart_by_exactly_the_settings_that_differ(capsys):
    """must leave out settings of the machine, values that are a default, and the seed"""
    varied: Sequence[tuple[int, dict[str, Any]]] = (
        (1, {"optim": {"epochs": 10}}),
        (2, {"optim": {"epochs": 10}, "data": {"workers": 3}, "name": "other", "log_every": 7}),
        (3, {"optim": {"epochs": 10}, "engine": {"micro_batch": 2, "recompute": True}}),
        (1, {"optim": {"epochs": 5}}),
        (1, {"optim": {"epochs": 10}, "data": {"global_batch": 8}}),
    )  # fmt: skip
    outputs = [
        write_run(f"memory://rows/{n}", "tppt_vt", *STAGES, seed=seed, settings=settings)
        for n, (seed, settings) in enumerate(varied)
    ]
    table = table_of(capsys, *outputs, "--summary")
    seeds = table["run"].index("seeds")
    assert {label: row[seeds] for label, row in table.items() if label != "run"} == {
        "tppt_vt data.global_batch=4": "3",
        "tppt_vt data.global_batch=4 optim.epochs=5": "1",
        "tppt_vt data.global_batch=8": "1",
    }


def test_option_with_its_default_tells_no_run_apart(capsys):
    def write(name: str, seed: int, options: dict[str, Any]) -> str:
        method = {"name": "finetune", "options": {"finetune": options}}
        return write_run(
            f"memory://options/{name}", "finetune", *STAGES, seed=seed, settings={"method": method}
        )

    length = {"visual_prompts": {"length": 3}}
    given = [
        write("none", 1, {}),
        write("default", 2, {"loss_classes": "current"}),
        write("other", 1, length),
        write("other default", 2, {**length, "loss_classes": "current"}),
    ]
    path = f"{given[0]}/results.json"  # a configuration of another version, without an option
    content = json.loads(storage.read_text(path))
    content["manifest"]["config"]["retired"] = 1
    storage.write_atomically(path, json.dumps(content).encode())
    table = table_of(capsys, *given)
    assert table["after task"] == ["finetune ×2", "finetune visual_prompts.length=3 ×2"]


def test_method_of_an_unknown_package_is_compared_by_its_given_options(capsys):
    method = "their.package:Method"
    outputs = [
        write_run(
            f"memory://unknown/{rate}", method, *STAGES,
            settings={"method": {"name": method, "options": {method: {"rate": rate}}}},
        )
        for rate in (1, 2)
    ]  # fmt: skip
    assert table_of(capsys, *outputs)["after task"] == [f"{method} rate=1", f"{method} rate=2"]


def test_same_run_given_twice_counts_once(capsys):
    first = write_run("memory://twice/a", "finetune", *STAGES)
    again = write_run("memory://twice/b", "finetune", *STAGES)
    assert main([first, again, first]) == 0
    text = capsys.readouterr().out
    assert cells(text)["after task"] == ["finetune"]
    assert f"{again} is the run of {first} again: counted once" in text
    assert main([first, first]) == 0
    assert "again" not in capsys.readouterr().out


def test_one_seed_with_two_figures_is_refused(capsys):
    outputs = [
        write_run("memory://twins/a", "finetune", *STAGES),
        write_run("memory://twins/b", "finetune", (9,), *STAGES[1:]),
    ]
    sentence = refusal_of(capsys, *outputs)
    assert (
        f"{outputs[0]} and {outputs[1]}: have equal settings and the same seed 1, but" in sentence
    )
    table = table_of(capsys, *outputs, "--runs")
    assert table["finetune"][-1] == outputs[1] and table["finetune"][4] == "1"


def test_class_orders_are_averaged_where_asked(capsys):
    outputs = [
        write_run(
            f"memory://orders/{seed}", "finetune", (8,), (6, 8), (5, 7, last), seed=seed,
            settings={"tasks": {"class_order": "lamda", "order_seed": seed}},
        )
        for seed, last in ((1, 9), (2, 3))
    ]  # fmt: skip
    assert "tasks.class_order is lamda with tasks.order_seed=1" in refusal_of(capsys, *outputs)
    table = table_of(capsys, *outputs, "--over", "order", "--summary")
    row = dict(zip(table["run"], table["finetune"], strict=True))
    assert row["last"] == "60.0 ± 14.1" and row["seeds"] == row["orders"] == "2"


def test_other_data_are_refused_over_class_orders_too(capsys):
    outputs = write_protocols()
    pair = [outputs["order"], outputs["data"]]
    assert "data.index is shards" in refusal_of(capsys, *pair, "--over", "order")


BASELINE = (
    ("zeroshot", 1, (5, 5, 5)),
    ("zeroshot", 2, (5, 5, 4)),
    ("finetune", 1, (5, 7, 9)),
    ("finetune", 2, (5, 7, 9)),
    ("finetune", 3, (9, 9, 9)),
)


def write_baseline() -> list[str]:
    """Two seeds of zeroshot and three of finetune."""
    return [
        write_run(f"memory://baseline/{method}{seed}", method, *STAGES[:2], last, seed=seed)
        for method, seed, last in BASELINE
    ]


def test_differences_to_a_baseline_are_over_equal_seeds(capsys):
    """must leave out the third seed, which the baseline lacks"""
    assert main([*write_baseline(), "--baseline", "zeroshot"]) == 0
    text = capsys.readouterr().out
    table = cells(text)
    column = table["run"].index("Δ last")
    assert table["finetune"][column] == "+21.7 ± 2.4" and table["zeroshot"][column] == "–"
    assert "Δ: difference to zeroshot, over runs of equal seed" in text


def test_unknown_baseline_is_refused(capsys):
    sentence = refusal_of(capsys, *write_baseline(), "--baseline", "zero_shot")
    assert (
        "--baseline: 'zero_shot' names no single row or run; did you mean 'zeroshot'?" in sentence
    )


def test_baseline_is_the_row_of_a_run(capsys):
    """must compare with all seeds of the row, and with that run alone where each has its row"""
    outputs = write_baseline()
    table = table_of(capsys, *outputs, "--baseline", f"{outputs[1]}/")
    column = table["run"].index("Δ last")
    assert table["finetune"][column] == "+21.7 ± 2.4" and table["zeroshot"][column] == "–"
    assert main([*outputs, "--baseline", outputs[1], "--per-run"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "│" in line]
    differences = [[cell.strip() for cell in line.split("│")][column + 2] for line in lines]
    assert differences == ["+3.3", "–", "+23.3", "+23.3", "+43.3"]


def test_difference_without_a_pair_is_that_of_the_means_and_says_so(capsys, tmp_path):
    """must give it the deviation of a difference of independent means"""
    figures = (("zeroshot", 1, 5), ("zeroshot", 2, 7), ("finetune", 3, 6), ("finetune", 4, 9))
    outputs = [
        write_run(f"memory://unpaired/{seed}", method, *STAGES[:2], (5, 5, last), seed=seed)
        for method, seed, last in figures
    ]
    file = tmp_path / "rows.json"
    assert main([*outputs, "--baseline", "zeroshot", "--json", str(file)]) == 0
    text = capsys.readouterr().out
    table = cells(text)
    # 53.3 ± 4.7 and 58.3 ± 7.1
    assert table["finetune"][table["run"].index("Δ last")] == "+5.0 ± 8.5"
    assert "finetune: no run has the seed of a run of zeroshot; Δ is the difference of" in text
    assert "over runs of equal seed" not in text
    (content,) = json.loads(file.read_text())["tables"]
    assert [row["difference_pairs"] for row in content["rows"]] == [None, 0]


@pytest.mark.parametrize("form", ["csv", "json", "latex"])
def test_rows_are_printed_in_place_of_the_table(capsys, tmp_path, form):
    """must be the same as in a file; what stands below the table goes to stderr"""
    first, *rest = write_baseline()
    copy = write_run("memory://printed/copy", "zeroshot", *STAGES[:2], (5, 5, 5))
    assert main([first, *rest, copy, f"--{form}"]) == 0
    out, err = capsys.readouterr()
    assert err == f"{copy} is the run of {first} again: counted once\n"
    assert main([first, *rest, copy, f"--{form}", str(tmp_path / "rows")]) == 0
    assert (tmp_path / "rows").read_text() == out


def test_two_forms_are_not_printed_at_once_and_no_run_is_replaced(capsys):
    first, *rest = write_baseline()
    assert "--csv and --json cannot both be printed" in refusal_of(capsys, first, "--csv", "--json")
    sentence = refusal_of(capsys, *rest, "--csv", first)
    assert f"--csv: {first} is the output of a run" in sentence
    assert finished_results(first).method == "zeroshot"


def test_rows_are_written_as_csv_json_and_latex(capsys, tmp_path: Path):
    files = {name: str(tmp_path / f"rows.{name}") for name in ("csv", "json", "latex")}
    flags = [word for name, file in files.items() for word in (f"--{name}", file)]
    assert main([*write_baseline(), "--baseline", "zeroshot", *flags]) == 0
    with open(files["csv"]) as file:
        zeroshot, finetune = csv.DictReader(file)
    assert zeroshot["run"] == "zeroshot" and finetune["seeds"] == "1 2 3"
    assert float(finetune["last_accuracy_mean"]) == pytest.approx((21 + 21 + 27) / 90)
    assert float(finetune["last_accuracy_difference_mean"]) == pytest.approx(13 / 60)
    assert zeroshot["last_accuracy_difference_mean"] == ""
    (table,) = json.loads(storage.read_text(files["json"]))["tables"]
    assert table["protocol"]["data.eval_transform"] == "clip"
    assert [row["run"] for row in table["rows"]] == ["zeroshot", "finetune"]
    assert [run["seed"] for run in table["rows"][1]["runs"]] == [1, 2, 3]
    assert [run["trained_parameters"] for run in table["rows"][1]["runs"]] == [21] * 3
    latex = storage.read_text(files["latex"])
    assert r"finetune & $" in latex and r"$+21.7 \pm 2.4$" in latex and r"\bottomrule" in latex
    assert r"& 3 & 21 & 5.2 \\" in latex


def test_many_groups_are_rows_with_repetitions_and_cost(capsys):
    outputs = [
        write_run(f"memory://many/{rate}", "finetune", *STAGES, settings={
            "optim": {"learning_rate": rate}
        })
        for rate in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
    ]  # fmt: skip
    table = table_of(capsys, *outputs)
    assert set(table) == {"run", "finetune"} | {
        f"finetune optim.learning_rate={rate}" for rate in (0.1, 0.01, 0.0001, 1e-05)
    }
    row = dict(zip(table["run"], table["finetune"], strict=True))
    assert (row["average"], row["last"], row["forgetting"]) == ("73.3", "70.0", "20.0")
    assert (row["backward transfer"], row["seeds"]) == ("-20.0", "1")
    assert (row["parameters"], row["seconds"]) == ("21", "5.2")
    assert "after task" in table_of(capsys, *outputs, "--stages")


def test_results_of_older_versions_are_compared(capsys):
    """must derive the protocol from the configuration and identity in the manifest"""
    outputs = [write_run(f"memory://old/{seed}", "finetune", *STAGES, seed=seed) for seed in (1, 2)]
    path = f"{outputs[0]}/results.json"
    content = json.loads(storage.read_text(path))
    del content["manifest"]["protocol"]
    del content["manifest"]["config"]["data"]["eval_transform"]
    storage.write_atomically(path, json.dumps(content).encode())
    assert table_of(capsys, *outputs)["after task"] == ["finetune ×2"]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("config.model", None),
        ("config.data.index", 7),
        ("config.method.options", {"finetune": 3}),
        ("config.seed", "one"),
        ("identity.tasks", ["kite"]),
        ("identity.settings", []),
    ],
)
def test_manifest_of_another_form_is_refused(capsys, place, value):
    output = write_run("memory://damaged/a", "finetune", *STAGES)
    content = json.loads(storage.read_text(f"{output}/results.json"))
    *path, last = place.split(".")
    reduce(lambda node, key: node[key], path, content["manifest"])[last] = value
    storage.write_atomically(f"{output}/results.json", json.dumps(content).encode())
    sentence = refusal_of(capsys, output)
    assert f"{output}/results.json: manifest is damaged ({place}" in sentence


def test_skipped_samples_and_steps_are_reported(capsys):
    sample = {"shard": "train-0.tar", "key": "7", "reason": "damaged"}
    output = write_run("memory://skipped/a", "finetune", *STAGES, skipped_samples=[sample])
    assert main([output]) == 0
    assert f"{output} skipped 1 sample(s) and 0 step(s)" in capsys.readouterr().out


def write_transferring(name: str, last: float, seed: int = 1, **fields: Any) -> str:
    """A run that also tested future tasks and a held-out set, in the label space of all tasks."""
    retention = [
        {"index": "s3://data/pets/", "sha256": "a" * 64, "classes": 37, "images": 9}
        | {"accuracy": [0.9, 0.8, 0.7, last]}
    ]
    return write_run(
        f"memory://transfer/{name}", "finetune", *STAGES, seed=seed, retention=retention,
        evaluation=EvaluationConfig(label_space="all", future_tasks=True),
        future={0: [0.1, 0.2, 0.3], 1: [0.4, 0.5], 2: [0.7]}, **fields,
    )  # fmt: skip


def test_transfer_and_held_out_sets_are_figures_where_runs_have_them(capsys, tmp_path):
    """must show a dash for a run that did not test them, and write them to every file"""
    outputs = [write_transferring("a", 0.6), write_transferring("b", 0.7, seed=2)]
    plain = write_run(
        "memory://transfer/plain", "zeroshot", *STAGES,
        evaluation=EvaluationConfig(label_space="all"),
    )  # fmt: skip
    assert main([*outputs, plain]) == 0
    text = capsys.readouterr().out
    assert "classes seen so far, each image among those of all tasks (%)" in text
    table = cells(text)
    assert table["transfer"] == ["50.0 ± 0.0", "–"], "mean of 0.4 and (0.5 + 0.7) / 2"
    rows = (0.8 + 0.4 + 0.5) + (0.6 + 0.8 + 0.7) + (0.5 + 0.7 + 0.9)
    assert table["average over matrix"] == [f"{100 * rows / 9:.1f} ± 0.0", "–"]
    assert table["last over tasks"] == ["70.0 ± 0.0", "–"]
    assert table["held-out pets"] == ["65.0 ± 7.1", "–"]
    summary = table_of(capsys, *outputs, plain, "--summary")
    found = dict(zip(summary["run"], summary["finetune"], strict=True))
    assert (found["transfer"], found["held-out pets"]) == ("50.0 ± 0.0", "65.0 ± 7.1")
    assert main([*outputs, plain, "--csv"]) == 0
    finetune, zeroshot = csv.DictReader(capsys.readouterr().out.splitlines())
    assert (finetune["transfer_mean"], zeroshot["transfer_mean"]) == ("0.5", "")
    assert float(finetune["held_out_aaaaaaaa_mean"]) == pytest.approx(0.65)
    assert main([*outputs, "--latex"]) == 0
    assert "& transfer & average over matrix & last over tasks & held-out pets &" in (
        capsys.readouterr().out
    )
    assert "transfer" not in table_of(capsys, plain)


def test_label_spaces_share_no_mean(capsys):
    one = write_transferring("one", 0.6)
    other = write_run("memory://transfer/other", "finetune", *STAGES, seed=2)
    refusal = refusal_of(capsys, one, other)
    assert f"evaluation.label_space is all in {one} and seen in {other}" in refusal


def test_samples_of_held_out_sets_that_were_skipped_are_reported(capsys):
    sample = {"shard": "test-0.tar", "key": "7", "reason": "damaged"}
    retention = [{"index": "pets", "sha256": "b", "classes": 37, "images": 9, "accuracy": [0.5]}]
    retention[0]["skipped_samples"] = [sample]
    output = write_run("memory://skipped/b", "finetune", *STAGES, retention=retention)
    assert main([output]) == 0
    text = capsys.readouterr().out
    assert f"{output} skipped 0 sample(s) and 0 step(s), and 1 sample(s) of held-out sets" in text


def test_stages_that_chose_the_settings_are_dashes_and_the_title_explains_it(capsys):
    outputs = [
        write_run(
            f"memory://compare/rest-{method}", method, (8,), (6, 8), (5, 7, 9),
            evaluation=EvaluationConfig(exclude_tasks=1),
        )
        for method in ("tppt_v", "finetune")
    ]  # fmt: skip
    assert main(outputs) == 0
    text = capsys.readouterr().out
    title = " ".join(text.split("┏")[0].split())
    assert title.endswith("except those of the first 1 task(s), which chose the settings (%)")
    table = cells(text)
    assert table["1"] == ["–", "–"] and table["2"] == ["80.0", "80.0"]
    assert table["3"] == table["last"] == ["80.0", "80.0"]
    assert table["forgetting"] == ["10.0", "10.0"]


def test_lines_give_the_source_of_settings_and_mark_those_chosen_on_the_evaluated_images(capsys):
    note = "tuned on the evaluation sequence"
    oracle = TuningConfig(protocol="oracle_sequence", sweep="runs/o", trials=9, note=note)
    honest = TuningConfig(protocol="transfer", sweep="runs/[t]", trials=12, device_hours=3.5)
    outputs = [
        write_run(f"memory://compare/{seed}", method, *STAGES, seed=seed, tuning=tuning)
        for seed, (method, tuning) in enumerate(
            (("tppt_v", oracle), ("tppt_v", oracle), ("finetune", honest), ("zeroshot", None))
        )
    ]
    assert main(outputs) == 0
    text = capsys.readouterr().out
    assert cells(text)["after task"] == ["tppt_v ×2 †", "finetune", "zeroshot"]
    lines = " ".join(text.split()).split("┘")[-1]
    assert (
        lines.split()
        == (
            f"† tppt_v: tuned by protocol oracle_sequence, 9 trials, sweep runs/o: {note} "
            "finetune: tuned by protocol transfer, 12 trials, 3.5 device-hours, sweep runs/[t]"
        ).split()
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_wait_for_a_dead_endpoint_with_one_line(number):
    environment = {
        **os.environ,
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }
    command = [sys.executable, "-m", "pipeline.compare", "s3://bucket/run"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        assert re.search(
            r"no server can be reached at .* attempt 1, again in .* until \d\d:", first
        )
        process.send_signal(number)
        *_, last = process.stderr.read().splitlines()
    assert last == "error: stopped by a signal; start the same command again to continue"
    assert process.returncode == 75


def test_wait_for_a_dead_endpoint_has_a_limit(monkeypatch, capsys):
    for name, value in (
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9"),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
    ):
        monkeypatch.setenv(name, value)
    assert main(["--deadline", "0", "s3://bucket/run"]) == 2
    assert re.search(r"1 attempts in \d s, the last failed with no server", capsys.readouterr().err)
    assert storage.deadline_s() == storage.DEADLINE_S
