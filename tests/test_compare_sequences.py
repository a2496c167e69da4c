"""Published results on a sequence of benchmarks stand beside a run of the same protocol alone."""

from __future__ import annotations

import csv
import json
from typing import Any

import pytest

from pipeline import storage
from pipeline.catalogue.entry import read_benchmark
from pipeline.catalogue.published import PublishedResult
from pipeline.catalogue.sequences import own_sequence
from pipeline.compare import main
from pipeline.data.index import INDEX_NAME, format_index
from pipeline.data.membership import Membership
from pipeline.output.results import RunResults, finished_results
from pipeline.reporting.published import differences_to_published
from tests.interruptions import start
from tests.shards import draw_arrival, store
from tests.tiny import build_config

SPLITS = {"mnist": "official", "eurosat": "coop"}
N_TRAIN, N_TEST = 2, 1  # images of each of the ten classes
ZSCL = "ZSCL: notebook in its repository"


@pytest.fixture(scope="module")
def output(tiny_arch, tmp_path_factory) -> str:
    """A run of two complete benchmarks, which have fewer images than those of the catalogue."""
    folder = tmp_path_factory.mktemp("sequence")
    for name, split in SPLITS.items():
        classes = list(read_benchmark(name).classes.values())
        samples = draw_arrival(classes, 3, n_train=N_TRAIN, n_test=N_TEST)
        index = store(str(folder / name), samples, classes=classes)
        membership = Membership(name, split, "ab" * 32)
        content = format_index(classes, index.class_folders, index.shards, None, membership)
        storage.write_atomically(str(folder / name / INDEX_NAME), content)
    sequence = own_sequence(tuple(SPLITS))
    config = build_config(
        tiny_arch,
        "unused",
        output=str(folder / "run"),
        data={"index": [str(folder / name) for name in SPLITS]},
        text={"templates": [sequence.templates_of(name) for name in SPLITS], "ensemble": True},
        tasks={"class_order": "natural", "classes_per_task": "all", "known_classes": "apart"},
        evaluation={"label_space": "task", "future_tasks": True},
    )
    assert start(config)
    return config.output


@pytest.fixture
def run(output) -> RunResults:
    """Its results, which a test may change."""
    return finished_results(output)


@pytest.fixture
def same_counts(monkeypatch):
    """A catalogue whose splits have as many images as those of the run."""

    def read(name: str):
        entry = read_benchmark(name)
        counts = {"train": N_TRAIN * entry.class_count, "test": N_TEST * entry.class_count}
        splits = {key: each.model_copy(update=counts) for key, each in entry.splits.items()}
        return entry.model_copy(update={"splits": splits})

    monkeypatch.setattr("pipeline.catalogue.sequences.read_benchmark", read)


def published(run: RunResults, **facts: Any) -> PublishedResult:
    """A result of the protocol of the run, except for ``facts``."""
    known = {
        "sequence": [*SPLITS],
        "label_space": "task",
        "splits": SPLITS,
        "templates": "sequence",
        "arch": "local-dir",
        "weights": run.manifest.backbone_sha256,
        "metric": "macro",
        "method": "ours",
        "transfer": 12.5,
        "average": 25.0,
        "last": 50.0,
        "source": "our wiki",
    }
    stated = {key: value for key, value in (known | facts).items() if value is not None}
    return PublishedResult.model_validate(stated)


def facts_of(run: RunResults, **facts: Any) -> dict[str, tuple[str, str]]:
    found = differences_to_published(run, published(run, **facts))
    return {fact: (one, other) for fact, one, other in found}


def write_file(result: PublishedResult) -> str:
    """A file of results with this one; JSON is YAML."""
    url = "memory://published/sequence.yaml"
    facts = result.model_dump(mode="json", exclude_unset=True)
    table = {"source": facts.pop("source"), "results": [facts]}
    storage.write_atomically(url, json.dumps([table]).encode())
    return url


def test_run_names_the_benchmark_of_each_index(run):
    found = [(each.benchmark, each.split) for each in run.manifest.memberships]
    assert found == [*SPLITS.items()] and run.manifest.membership is None
    assert run.groups == [0, 1] and run.transfer is not None


def test_run_of_the_same_protocol_has_no_difference(run, same_counts):
    assert facts_of(run) == {}


def test_fewer_images_are_another_protocol(run):
    """must compare the images of all benchmarks together"""
    assert facts_of(run) == {
        "training images": ("40", "73,500"),
        "tested images": ("20", "18,100"),
    }


@pytest.mark.parametrize(
    ("change", "fact", "values"),
    [
        ({"sequence": ["eurosat", "mnist"]}, "benchmarks", ("mnist, eurosat", "eurosat, mnist")),
        ({"label_space": "all"}, "evaluation.label_space", ("task", "all")),
        ({"splits": {}}, "split", ("mnist official, eurosat coop", "not stated")),
        ({"splits": {"mnist": "official"}}, "split", ("eurosat coop", "eurosat not stated")),
        ({"templates": None}, "text.templates", ("those of the run", "not stated")),
        ({"arch": "ViT-B-16"}, "architecture", ("local-dir", "ViT-B-16")),
        ({"arch": None}, "architecture", ("local-dir", "not stated")),
        ({"eval_transforms": ["squash"]}, "data.eval_transform", ("clip", "squash")),
    ],
)  # fmt: skip
def test_each_published_fact_alone_removes_a_result(run, same_counts, change, fact, values):
    assert facts_of(run, **change) == {fact: values}


def test_each_fact_of_the_run_alone_removes_a_result(run, same_counts):
    text = run.manifest.config["text"]
    mnist, eurosat = text["templates"]
    run.manifest.identity["tasks"][0]["templates"] = eurosat
    assert facts_of(run) == {"text.templates": ("others for mnist", "of the sequence")}
    run.manifest.identity["tasks"][0]["templates"] = mnist
    text["ensemble"] = False
    assert facts_of(run) == {"text.ensemble": ("false", "true")}
    text["ensemble"] = True
    run.manifest.memberships[1] = Membership("eurosat", "mine", "ab" * 32)
    assert facts_of(run) == {"split": ("eurosat mine", "eurosat coop")}
    run.manifest.memberships.reverse()
    assert facts_of(run) == {"benchmarks": ("eurosat, mnist", "mnist, eurosat")}
    run.manifest.memberships.clear()
    assert facts_of(run)["benchmarks"] == ("not stated", "mnist, eurosat"), "of an older version"


def test_part_of_a_benchmark_is_no_task_of_the_sequence(run, same_counts):
    """must differ from a run that learns a benchmark in two tasks"""
    first, second = run.tasks
    run.tasks[:] = [first[:5], first[5:], second]
    assert facts_of(run) == {
        "tasks": ("3 tasks of 5, 5, 10 classes", "a task of each benchmark (2 tasks, 20 classes)")
    }


def test_table_has_transfer_average_and_last(output, run, same_counts, capsys):
    assert main([output, "--published-file", write_file(published(run))]) == 0
    shown, _, others = capsys.readouterr().out.partition("nearest published results")
    _, _, same = shown.partition("published for mnist, split official + eurosat, split coop")
    ours = next(line for line in same.splitlines() if "our wiki" in line)
    assert [cell.strip() for cell in ours.split("│")[2:5]] == ["12.50", "25.00", "50.00"]
    here = next(line for line in same.splitlines() if " here " in line)
    figures = run.transfer.transfer, run.transfer.average_over_matrix, run.transfer.last_over_tasks
    assert [cell.strip() for cell in here.split("│")[2:5]] == [f"{100 * x:.1f}" for x in figures]
    assert "macro" in here and "catalogue has no hash" in same
    assert "our wiki" not in others and ZSCL in others


def test_results_on_other_sequences_say_what_differs(output, run, capsys):
    assert main([output, "--published", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["tables"][0]["published"]
    assert found["same_protocol"] == []
    zscl = next(each for each in found["other_protocols"] if each["method"] == "ZSCL")
    assert (zscl["transfer"], zscl["average"], zscl["last"]) == (0.681, 0.754, 0.836)
    differing = {each["setting"]: each["other"] for each in zscl["differences"]}
    assert differing["benchmarks"].startswith("mtil (aircraft, caltech101, cifar100")
    assert differing.keys() == {"benchmarks", "architecture", "weights"}
    assert {each["benchmark"] for each in found["other_protocols"]} == {None}


def test_csv_has_the_figures_of_the_sequence(output, run, same_counts, capsys):
    assert main([output, "--published-file", write_file(published(run)), "--csv"]) == 0
    here, ours = csv.DictReader(capsys.readouterr().out.splitlines())
    assert (here["published_source"], here["metric"]) == ("", "macro")
    keys = ("transfer_mean", "average_over_matrix_mean", "last_over_tasks_mean")
    assert [ours[key] for key in keys] == ["0.125", "0.25", "0.5"]
    assert float(here["transfer_mean"]) == run.transfer.transfer


def test_an_index_without_a_benchmark_is_named(output, run, tmp_path, capsys):
    run.manifest.memberships[1] = None
    run.write(str(tmp_path))
    assert main([str(tmp_path), "--published"]) == 0
    assert f"the data of {tmp_path} names no benchmark" in capsys.readouterr().out
