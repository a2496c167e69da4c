"""Published results: every row is of the catalogue, and a wrong one is refused with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import storage
from pipeline.catalogue.entry import read_benchmark
from pipeline.catalogue.published import read_published
from pipeline.errors import ConfigError

PAGE = Path(__file__).parents[2] / "docs" / "COMPARE.md"
RESULTS = read_published()
OF_SEQUENCES = [each for each in RESULTS if each.sequence]
OF_BENCHMARKS = [each for each in RESULTS if not each.sequence]
TABLE = """
- source: our group
  shared: {benchmark: cifar100, protocol: B0-10, arch: ViT-B-16, class_order: lamda}
  results:
  - {method: ours, average: 80.5, last: 70}
  - {method: theirs, average: 81.5, class_order: icarl}
"""


WHOLE = "benchmark: cifar100, protocol: B0-10, arch: ViT-B-16, class_order: lamda"


def write(text: str) -> str:
    url = "memory://published/results.yaml"
    storage.write_atomically(url, text.encode())
    return url


def test_every_result_is_of_a_benchmark_split_and_protocol_of_the_catalogue():
    assert len(RESULTS) > 100
    for result in OF_BENCHMARKS:
        entry = read_benchmark(result.benchmark)
        n_classes = entry.class_count
        if result.split is not None:
            n_classes = entry.classes_of(entry.splits[result.split])
        assert sum(result.task_sizes) == n_classes
        assert result.task_sizes[0] == entry.protocols[result.protocol].initial
        assert result.labels is None or sorted(result.labels) == list(range(n_classes))
        assert result.source and result.method


def test_results_on_a_sequence_have_a_task_of_each_benchmark():
    """must have the 1,201 classes of MTIL in both orders, arXiv 2303.06628"""
    sizes = {result.sequence: result.task_sizes for result in OF_SEQUENCES}
    assert sorted(sizes["mtil"]) == sorted(sizes["mtil-2"]) and sum(sizes["mtil"]) == 1201
    assert len(sizes["x-tail"]) == 10
    spaces = {result.sequence: result.tested_among for result in OF_SEQUENCES}
    assert spaces == {"mtil": "task", "mtil-2": "task", "x-tail": "all"}


def test_zero_shot_ends_as_it_starts():
    """must have one accuracy on each task at all stages, and the same in both orders of MTIL"""
    frozen = [each for each in OF_SEQUENCES if each.method == "zero-shot"]
    assert [each.sequence for each in frozen] == ["mtil", "mtil-2"]
    assert {each.average for each in frozen} == {each.last for each in frozen} == {65.3}


def test_no_result_stands_twice():
    facts = [result.model_dump_json() for result in RESULTS]
    assert len(set(facts)) == len(facts)


def test_last_accuracy_is_not_above_the_average():
    """must hold for a sequence that only becomes harder; it finds swapped figures"""
    known = [each for each in OF_BENCHMARKS if None not in (each.average, each.last)]
    assert [each for each in known if each.last >= each.average] == []


def test_a_result_states_otherwise_what_its_table_shares():
    ours, theirs = read_published([write(TABLE)])[len(RESULTS) :]
    assert (ours.method, ours.average, ours.last, ours.source) == ("ours", 80.5, 70, "our group")
    assert (ours.class_order, theirs.class_order, theirs.last) == ("lamda", "icarl", None)
    assert ours.split is None and ours.weights is None and ours.exemplars is None
    assert ours.labels[:4] == (68, 56, 78, 8) and theirs.labels[:4] == (87, 0, 52, 58)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("cifar100", "cifar1000", "did you mean 'cifar100'"),
        ("B0-10", "B0-7", "'B0-7' is no protocol of cifar100; there are B0-10"),
        ("last: 70", "last: 70, split: lamda", "'lamda' is no split of cifar100"),
        ("average: 80.5", "average: 805", "average"),
        ("average: 80.5, last: 70", "exemplars: 0", "neither average nor last"),
        ("last: 70", "lst: 70", "lst"),
        ("order: lamda", "order: [1, 1]", "must contain each label 0..99 once"),
        ("protocol: B0-10, ", "", "needs benchmark and protocol, or sequence"),
        ("last: 70", "last: 70, transfer: 60", "transfer is no fact of cifar100"),
        ("benchmark: cifar100", "sequence: mtil", "class_order is no fact of mtil"),
        ("benchmark: cifar100", "sequence: mtail", "did you mean 'mtil'"),
        (WHOLE, "sequence: [pets, dtd]", "a sequence that is a list needs label_space"),
        (WHOLE, "sequence: [pets, dt], label_space: all", "did you mean 'dtd'"),
        (WHOLE, "sequence: mtil, splits: {cub200: lamda}", "cub200 is no benchmark of mtil"),
        (WHOLE, "sequence: x-tail, splits: {pets: mtil}", "'mtil' is no split of pets"),
    ],
)
def test_wrong_results_are_refused_with_their_place(old, new, problem):
    with pytest.raises(ConfigError) as refusal:
        read_published([write(TABLE.replace(old, new, 1))])
    text = str(refusal.value)
    assert "results.yaml: table 1 (our group), result 1" in text and problem in text


def test_a_missing_file_is_refused():
    with pytest.raises(ConfigError, match="nowhere.yaml: is no file of published results"):
        read_published(["memory://published/nowhere.yaml"])


def test_the_page_has_the_number_of_results_and_a_file_that_is_read():
    page = PAGE.read_text()
    n_benchmarks = len({each.benchmark for each in OF_BENCHMARKS})
    assert f"{len(OF_BENCHMARKS)} results on {n_benchmarks} benchmarks" in page
    n_sequences = len({each.sequence for each in OF_SEQUENCES})
    assert f"{len(OF_SEQUENCES)} on {n_sequences} sequences" in page
    example = "- source: our paper" + page.partition("- source: our paper")[2].partition("```")[0]
    without, with_replay, of_sequence = read_published([write(example)])[len(RESULTS) :]
    assert (without.exemplars, with_replay.exemplars) == (0, 2000)
    assert of_sequence.benchmarks == ("aircraft", "pets")
