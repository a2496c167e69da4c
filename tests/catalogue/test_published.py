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
TABLE = """
- source: our group
  shared: {benchmark: cifar100, protocol: B0-10, arch: ViT-B-16, class_order: lamda}
  results:
  - {method: ours, average: 80.5, last: 70}
  - {method: theirs, average: 81.5, class_order: icarl}
"""


def write(text: str) -> str:
    url = "memory://published/results.yaml"
    storage.write_atomically(url, text.encode())
    return url


def test_every_result_is_of_a_benchmark_split_and_protocol_of_the_catalogue():
    assert len(RESULTS) > 100
    for result in RESULTS:
        entry = read_benchmark(result.benchmark)
        n_classes = entry.class_count
        if result.split is not None:
            n_classes = entry.classes_of(entry.splits[result.split])
        assert sum(result.task_sizes) == n_classes
        assert result.task_sizes[0] == entry.protocols[result.protocol].initial
        assert result.labels is None or sorted(result.labels) == list(range(n_classes))
        assert result.source and result.method


def test_no_result_stands_twice():
    facts = [result.model_dump_json() for result in RESULTS]
    assert len(set(facts)) == len(facts)


def test_last_accuracy_is_not_above_the_average():
    """must hold for a sequence that only becomes harder; it finds swapped figures"""
    known = [each for each in RESULTS if None not in (each.average, each.last)]
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
    assert f"{len(RESULTS)} results on {len({r.benchmark for r in RESULTS})} benchmarks" in page
    example = "- source: our paper" + page.partition("- source: our paper")[2].partition("```")[0]
    without, with_replay = read_published([write(example)])[len(RESULTS) :]
    assert (without.exemplars, with_replay.exemplars) == (0, 2000)
