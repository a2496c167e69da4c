"""The table of finished runs against figures computed by hand; other runs are refused."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.compare import main
from pipeline.config import EvaluationConfig, TuningConfig
from tests.stages import build_results, stage


def write_run(
    output: str, method: str, *correct: tuple[int, ...], n_tasks: int = 3, **fields: Any
) -> str:
    """A run with ten images per task and, for each stage, the correct predictions per task."""
    stages = [stage(row, (10,) * len(row)) for row in correct]
    build_results(stages, method=method, n_tasks=n_tasks, **fields).build().write(output)
    return output


def cells(text: str) -> dict[str, list[str]]:
    """The cells of each row of a printed table by its first cell."""
    rows = [[cell.strip() for cell in line.strip("┃│ \n").replace("┃", "│").split("│")]
            for line in text.splitlines() if "│" in line or "┃" in line]  # fmt: skip
    return {row[0]: row[1:] for row in rows}


def test_columns_are_methods_and_rows_are_stages_and_figures(capsys):
    outputs = [
        write_run("memory://compare/a1", "tppt_v", (8,), (6, 8), (5, 7, 9)),
        write_run("memory://compare/a2", "tppt_v", (10,), (8, 8), (7, 7, 9)),
        write_run("memory://compare/b", "zeroshot", (5,), (5, 5), (5, 5, 5)),
    ]
    assert main(outputs) == 0
    table = cells(capsys.readouterr().out)
    assert table["after task"] == ["tppt_v ×2", "zeroshot"]
    assert table["1"] == ["90.0 ± 14.1", "50.0"]
    assert table["3"] == ["73.3 ± 4.7", "50.0"]
    assert table["average"] == ["79.4 ± 8.6", "50.0"]
    assert table["last"] == ["73.3 ± 4.7", "50.0"]
    assert table["forgetting"] == ["20.0 ± 0.0", "0.0"]


def test_unknown_figure_is_a_dash(capsys):
    assert main([write_run("memory://compare/one", "finetune", (8,), n_tasks=1)]) == 0
    assert cells(capsys.readouterr().out)["forgetting"] == ["–"]


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        (["memory://compare/nowhere"], "memory://compare/nowhere: holds no results.json"),
        (["memory://compare/half"], "holds a run that is running; a finished run is wanted; let"),
        (
            ["memory://compare/one", "memory://compare/three"],
            "the runs have 1 and 3 tasks; compare",
        ),
        (
            ["memory://compare/three", "memory://compare/rest"],
            "the runs exclude 0 and 2 first tasks from the summary; compare",
        ),
        (
            ["memory://compare/three", "memory://compare/held-out"],
            "the runs were tested on test and validation images; compare",
        ),
    ],
)
def test_runs_that_are_not_comparable_are_refused(capsys, outputs, words):
    write_run("memory://compare/half", "finetune", (8,))
    write_run("memory://compare/one", "finetune", (8,), n_tasks=1)
    stages = ((8,), (8, 8), (8, 8, 8))
    write_run("memory://compare/three", "finetune", *stages)
    rest, held_out = EvaluationConfig(exclude_tasks=2), EvaluationConfig(split="validation")
    write_run("memory://compare/rest", "finetune", *stages, evaluation=rest)
    write_run("memory://compare/held-out", "finetune", *stages, evaluation=held_out)
    assert main(outputs) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and words in err


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
        write_run(f"memory://compare/{name}", method, (8,), (6, 8), (5, 7, 9), tuning=tuning)
        for name, method, tuning in (
            ("o1", "tppt_v", oracle),
            ("o2", "tppt_v", oracle),
            ("t", "finetune", honest),
            ("n", "zeroshot", None),
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
