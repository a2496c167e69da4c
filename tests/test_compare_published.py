"""Published results stand beside a run only if every fact of the protocol is the same."""

from __future__ import annotations

import csv
import json
from copy import deepcopy
from typing import Any

import pytest

from pipeline import storage
from pipeline.catalogue.entry import read_benchmark
from pipeline.catalogue.published import read_published
from pipeline.compare import main
from pipeline.config import EvaluationConfig
from pipeline.output.results import RunResults
from pipeline.reporting.published import differences_to_published
from tests.stages import build_results, stage

PUBLISHED = read_published()
VIS, QUOTED = "VIS: arXiv 2609.37888", "DuLBE: arXiv 2609.36759"
MEMBERSHIP = {"benchmark": "cifar100", "split": "official", "sha256": "ab" * 32}
BACKBONE = {"arch": "ViT-B-16", "weights": "laion400m_e32"}
ALL = EvaluationConfig()
OUTPUT = "memory://published/run"


def run_of(
    *,
    membership: dict[str, str] | None = MEMBERSHIP,
    model: dict[str, str] = BACKBONE,
    trained: int | None = 50_000,
    tested: int = 1000,
    evaluation: EvaluationConfig = ALL,
    **settings: Any,
) -> RunResults:
    """A finished run on CIFAR100 in LAMDA's protocol, except for what is given."""
    tasks = {"class_order": "lamda", "classes_per_task": 10} | settings.pop("tasks", {})
    names = list(read_benchmark("cifar100").classes.values())
    n_tasks = tasks.get("limit", 100 // tasks["classes_per_task"])
    images = [tested] * n_tasks
    stages = [stage(images[:n], images[:n]) for n in range(1, n_tasks + 1)]
    settings |= {"tasks": tasks, "output": OUTPUT}
    builder = build_results(
        stages, method="zeroshot", class_names=names, settings=settings, evaluation=evaluation
    )
    manifest = deepcopy(builder.manifest)
    manifest["config"]["model"] |= model
    manifest["train_images"] = trained
    if membership:
        manifest["membership"] = membership
    builder.manifest.clear()
    builder.manifest.update(manifest)
    return builder.build()


def write(**facts: Any) -> str:
    run_of(**facts).write(OUTPUT)
    return OUTPUT


def published(source: str, method: str = "SimpleCIL"):
    return next(
        each
        for each in PUBLISHED
        if (each.source, each.method, each.benchmark) == (source, method, "cifar100")
    )


def facts_of(run: RunResults, result=None) -> dict[str, tuple[str, str]]:
    found = differences_to_published(run, result or published(VIS))
    return {fact: (one, other) for fact, one, other in found}


def json_of(capsys, *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["tables"][0]["published"]


def test_a_run_of_the_same_protocol_has_no_difference():
    assert facts_of(run_of()) == {}


@pytest.mark.parametrize(
    ("change", "fact", "values"),
    [
        (
            {"membership": MEMBERSHIP | {"benchmark": "food101"}},
            "benchmark",
            ("food101", "cifar100"),
        ),
        ({"membership": None}, "benchmark", ("not stated", "cifar100")),
        ({"membership": MEMBERSHIP | {"split": "mine"}}, "split", ("mine", "official")),
        ({"trained": 1600}, "training images", ("1,600", "50,000")),
        ({"trained": None}, "training images", ("not stated", "50,000")),
        ({"tested": 999}, "tested images", ("9,990", "10,000")),
        (
            {"tasks": {"classes_per_task": 20}, "tested": 2000},
            "tasks",
            ("5 task(s) of 20 classes", "B0-10 (10 tasks, 100 classes)"),
        ),
        (
            {"tasks": {"limit": 9}},
            "tasks",
            ("9 task(s) of 10 classes", "B0-10 (10 tasks, 100 classes)"),
        ),
        (
            {"tasks": {"order_seed": 1}},
            "class order",
            ("lamda with tasks.order_seed=1", "lamda with tasks.order_seed=1993"),
        ),
        (
            {"tasks": {"class_order": "mammoth"}},
            "class order",
            ("mammoth with tasks.order_seed=1993", "lamda with tasks.order_seed=1993"),
        ),
        (
            {"tasks": {"class_order": "natural"}},
            "class order",
            ("natural", "lamda with tasks.order_seed=1993"),
        ),
        ({"model": BACKBONE | {"arch": "ViT-L-14"}}, "architecture", ("ViT-L-14", "ViT-B-16")),
        (
            {"model": BACKBONE | {"weights": "openai"}},
            "weights",
            ("openai", "laion400m_e32"),
        ),
        ({"data": {"validation_fraction": 0.1}}, "data.validation_fraction", ("0.1", "0")),
        (
            {"evaluation": EvaluationConfig(exclude_tasks=1)},
            "evaluation.exclude_tasks",
            ("1", "0"),
        ),
        (
            {"evaluation": EvaluationConfig(label_space="task")},
            "evaluation.label_space",
            ("task", "seen"),
        ),
    ],
)
def test_each_fact_alone_removes_a_result_and_is_named(change, fact, values):
    found = facts_of(run_of(**change))
    assert found == {fact: values}


def test_results_on_validation_images_are_not_those_of_test_images():
    evaluation = EvaluationConfig(split="validation")
    found = facts_of(run_of(evaluation=evaluation, data={"validation_fraction": 0.1}))
    assert found.keys() == {"evaluation.split", "data.validation_fraction"}


def test_a_fact_that_is_not_stated_is_not_the_same():
    openai = {"arch": "ViT-B-16-quickgelu", "weights": "openai"}
    found = facts_of(run_of(model=openai), published(QUOTED, "DuLBE"))
    assert found == {"class order": ("lamda with tasks.order_seed=1993", "not stated")}


def test_every_differing_fact_is_named():
    run = run_of(tasks={"class_order": "natural"}, model=BACKBONE | {"weights": "openai"})
    result = published(VIS).model_copy(update={"protocol": "B50-10", "split": None})
    assert list(facts_of(run, result)) == ["split", "tasks", "class order", "weights"]


def test_equal_rules_that_give_other_orders_are_told_apart_by_their_first_labels():
    run = run_of()
    run.manifest.class_order[:2] = run.manifest.class_order[1::-1]
    assert facts_of(run)["class order"] == (
        "lamda with tasks.order_seed=1993 of 100 classes, first 56, 68, 78, … (100 in all)",
        "lamda with tasks.order_seed=1993, first 68, 56, 78, … (100 in all)",
    )


def test_transform_and_metric_count_where_they_are_stated():
    result = published(VIS).model_copy(update={"eval_transforms": ["squash"]})
    assert facts_of(run_of(), result) == {"data.eval_transform": ("clip", "squash")}
    assert facts_of(run_of(data={"eval_transform": "squash"}), result) == {}
    macro = published(VIS).model_copy(update={"metric": "macro"})
    assert facts_of(run_of(), macro) == {}  # tasks of equally many images
    uneven = run_of()
    uneven.counts.images[-1][:2] = [999, 1001]
    assert facts_of(uneven, macro) == {"metric": ("micro", "macro")}


def test_weights_may_be_named_by_their_hash():
    run = run_of()
    same = published(VIS).model_copy(update={"weights": run.manifest.backbone_sha256})
    assert facts_of(run, same) == {}


def test_table_has_the_results_of_the_protocol_and_says_why_not_the_others(capsys):
    assert main([write(), "--published"]) == 0
    shown, _, others = capsys.readouterr().out.partition("nearest published results")
    _, _, same = shown.partition("published for cifar100, split official, 10 task(s) of 10 classes")
    assert "84.15" in same and VIS in same and "PROOF: logs in its repository" in same
    assert "2000" in same and "not stated" in same  # exemplars are never hidden
    assert QUOTED not in same and QUOTED in others
    assert "class order: lamda with tasks.order_seed=1993 here, not stated published" in others


def test_an_unknown_membership_is_said(capsys):
    assert main([write(), "--published"]) == 0
    assert "the catalogue has no hash of its images" in capsys.readouterr().out
    entry = read_benchmark("cifar100")
    digest = MEMBERSHIP["sha256"]
    for known, facts in (("cd" * 32, {"images of the split": ("abababab", "cdcdcdcd")}),
                         (digest, {})):  # fmt: skip
        split = entry.splits["official"].model_copy(update={"sha256": known})
        other = entry.model_copy(update={"splits": {"official": split}})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pipeline.catalogue.published.read_benchmark", lambda name, e=other: e)
            assert facts_of(run_of()) == facts


def test_table_says_that_no_result_has_the_protocol(capsys):
    assert main([write(tasks={"order_seed": 1}), "--published"]) == 0
    out = capsys.readouterr().out
    assert "no published result has the protocol cifar100, split official" in out
    assert "order lamda with tasks.order_seed=1" in out and "90.64" in out


def test_without_a_benchmark_the_remedy_is_named(capsys):
    assert main([write(membership=None), "--published"]) == 0
    out = capsys.readouterr().out
    assert f"the data of {OUTPUT} names no benchmark" in out and "--benchmark NAME" in out
    assert VIS not in out


def test_without_the_option_no_published_result_is_shown(capsys):
    assert main([write()]) == 0
    assert "published" not in capsys.readouterr().out
    assert main([OUTPUT, "--csv"]) == 0
    assert "published_source" not in capsys.readouterr().out


def test_json_has_fractions_and_differences(capsys):
    found = json_of(capsys, write(), "--published")
    simple = next(each for each in found["same_protocol"] if each["method"] == "SimpleCIL")
    assert (simple["average"], simple["last"], simple["exemplars"]) == (0.8415, 0.7663, 0)
    dulbe = next(each for each in found["other_protocols"] if each["method"] == "DuLBE")
    assert {each["setting"] for each in dulbe["differences"]} >= {"class order", "weights"}
    numbers = [len(each["differences"]) for each in found["other_protocols"]]
    assert numbers == sorted(numbers) and min(numbers) > 0
    methods = {each.benchmark for each in PUBLISHED if each.source == VIS} - {"cifar100"}
    assert methods and not methods & {each["benchmark"] for each in found["other_protocols"]}


def test_csv_adds_a_line_for_each_result_of_the_protocol(capsys):
    assert main([write(), "--published", "--csv"]) == 0
    out, err = capsys.readouterr()
    first, *rest = csv.DictReader(out.splitlines())
    assert (first["method"], first["published_source"], first["exemplars"]) == ("zeroshot", "", "0")
    by_method = {line["method"]: line for line in rest if line["published_source"] == VIS}
    assert by_method["RanPAC"]["average_incremental_accuracy_mean"] == "0.893"
    assert by_method["DualPrompt"]["exemplars"] == "" and by_method["ENGINE"]["exemplars"] == "0"
    assert {line["protocol_sha256"] for line in rest} == {first["protocol_sha256"]}
    assert "published results have the protocol cifar100" in err


def test_results_of_a_file_are_added(capsys):
    file = "memory://published/ours.yaml"
    text = (
        "- source: our wiki\n  shared: {benchmark: cifar100, protocol: B0-10, split: official,\n"
        "    class_order: lamda, arch: ViT-B-16, weights: laion400m_e32}\n"
        "  results:\n  - {method: ours, average: 90, last: 85, exemplars: 7}\n"
    )
    storage.write_atomically(file, text.encode())
    found = json_of(capsys, write(), "--published-file", file)
    assert [each["exemplars"] for each in found["same_protocol"] if each["method"] == "ours"] == [7]


def test_latex_is_refused_before_any_run_is_read(capsys):
    assert main(["memory://nothing", "--published", "--latex"]) == 2
    assert "--latex has no published results" in capsys.readouterr().err
