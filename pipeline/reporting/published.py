"""Published results beside runs: only those of the same protocol; of others, which facts differ.

A run of several indexes is compared with results on sequences of benchmarks, in which each one is
a task. A fact that a source does not state counts as a difference. The metric and the test
transform are rarely stated, so they count only where they are; exemplars are a column of every
table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline import storage
from pipeline.catalogue.entry import Split
from pipeline.catalogue.published import PublishedResult
from pipeline.output.protocol import setting_of
from pipeline.output.results import RunResults
from pipeline.reporting.protocols import Difference, name_order, name_sizes
from pipeline.reporting.run_groups import RunTable
from pipeline.text import first_few

NOT_STATED = "not stated"
Metric = Literal["micro", "macro"]


@dataclass(frozen=True)
class PublishedRows:
    """The published results on the benchmark of a table of runs, or on sequences, best first."""

    protocol: str  # that of the runs, in words
    same: list[PublishedResult]  # of the same protocol
    others: list[tuple[PublishedResult, list[Difference]]]  # nearest first, with what differs
    metric: Metric = "micro"  # of the figures of the runs beside them
    split_by_name: str | None = None  # the splits of which the catalogue has no hash
    unnamed: str | None = None  # the output of a run that names no benchmark; then no result fits


def find_published(table: RunTable, published: Sequence[PublishedResult]) -> PublishedRows:
    """The results of ``published`` on the benchmark of the runs in ``table``, or on sequences."""
    runs = [run for group in table.groups for run in group.runs]
    for run in runs:
        if None in run.results.manifest.benchmarks:
            return PublishedRows("", [], [], unnamed=storage.redact(run.output))
    first = runs[0].results
    names = _names(first)
    same, others = [], []
    for result in sorted(published, key=lambda each: -(each.average or each.last or 0)):
        if result.sequence if len(names) > 1 else result.benchmark == names[0]:
            found = (differences_to_published(run.results, result) for run in runs)
            differences = next(filter(None, found), [])  # with --over order, runs differ
            if differences:
                others.append((result, differences))
            else:
                same.append(result)
    others.sort(key=lambda pair: len(pair[1]))
    by_name = ", ".join(_splits_by_name(first, same[0])) if same else None
    metric: Metric = "macro" if len(names) > 1 else "micro"
    return PublishedRows(_describe(first), same, others, metric, by_name or None)


def differences_to_published(run: RunResults, published: PublishedResult) -> list[Difference]:
    """The facts in which the protocol of ``run`` is not, or may not be, the published one."""
    return [*_data(run, published), *_tasks(run, published), *_model(run, published),
            *_evaluation(run, published)]  # fmt: skip


def _names(run: RunResults) -> tuple[str, ...]:
    """The benchmark of each index, in order."""
    return tuple(each.benchmark if each else NOT_STATED for each in run.manifest.benchmarks)


def _data(run: RunResults, published: PublishedResult) -> Iterator[Difference]:
    if _names(run) != published.benchmarks:
        fact = "benchmarks" if published.sequence else "benchmark"
        yield Difference(fact, ", ".join(_names(run)), published.title)
    else:
        yield from _splits(run, published)
    held_out = setting_of(run.manifest.config, "data.validation_fraction")
    if held_out:
        yield Difference("data.validation_fraction", f"{held_out:g}", "0")


def _splits(run: RunResults, published: PublishedResult) -> Iterator[Difference]:
    """Other splits of the same benchmarks, by name, by the hash and by the number of images."""
    memberships = [each for each in run.manifest.benchmarks if each]
    splits = [published.splits_of(each.benchmark).get(each.split) for each in memberships]
    names, hashes = [], []
    for mine, split, theirs in zip(memberships, splits, published.split_names, strict=True):
        place = f"{mine.benchmark} " if published.sequence else ""
        if mine.split != theirs:
            stated = f"{place}{theirs or NOT_STATED}" if any(published.split_names) else NOT_STATED
            names.append((f"{place}{mine.split}", stated))
        elif split is not None and split.sha256 not in (None, mine.sha256):
            hashes.append((f"{place}{mine.sha256[:8]}", f"{place}{str(split.sha256)[:8]}"))
    for fact, pairs in (("split", names), ("images of the split", hashes)):
        if pairs:
            one, other = (", ".join(dict.fromkeys(texts)) for texts in zip(*pairs, strict=True))
            yield Difference(fact, one, other)
    known = [split for split in splits if split is not None]
    if len(known) == len(splits) and sum(map(len, run.tasks)) == sum(published.task_sizes):
        yield from _images(run, known)


def _images(run: RunResults, splits: Sequence[Split]) -> Iterator[Difference]:
    """Other numbers of images, as ``prepare --allow-other-counts`` accepts them."""
    train, test = ([getattr(split, key) for split in splits] for key in ("train", "test"))
    for fact, found, expected in (
        ("training images", run.manifest.train_images, train),
        ("tested images", sum(run.counts.images[-1]), test),
    ):
        if None not in expected and found != sum(expected):
            shown = NOT_STATED if found is None else f"{found:,}"
            yield Difference(fact, shown, f"{sum(expected):,}")


def _tasks(run: RunResults, published: PublishedResult) -> Iterator[Difference]:
    if published.sequence and _names(run) != published.benchmarks:
        return  # hence other tasks
    sizes = tuple(map(len, run.tasks))
    if sizes != published.task_sizes:
        n_tasks, n_classes = len(published.task_sizes), sum(published.task_sizes)
        name = published.protocol or "a task of each benchmark"
        theirs = f"{name} ({n_tasks} tasks, {n_classes} classes)"
        yield Difference("tasks", name_sizes(sizes), theirs)
    if published.sequence:
        yield from _templates(run, published)
    else:
        yield from _order(run, published)


def _templates(run: RunResults, published: PublishedResult) -> Iterator[Difference]:
    """Other templates of a benchmark than those of the sequence; training uses the first."""
    sequence = published.found_sequence
    if sequence is None or published.templates is None:
        yield Difference("text.templates", "those of the run", NOT_STATED)
        return
    given = run.protocol.settings["text.templates"]
    of_each = given if isinstance(given[0], list) else [given] * len(sequence.benchmarks)
    wanted = [sequence.templates_of(name) for name in sequence.benchmarks]
    pairs = zip(sequence.benchmarks, of_each, wanted, strict=False)
    other = [name for name, mine, theirs in pairs if mine != theirs]
    if other:
        yield Difference("text.templates", f"others for {first_few(other)}", "of the sequence")
    is_ensemble = setting_of(run.manifest.config, "text.ensemble")
    if not is_ensemble and any(len(each) > 1 for each in wanted):
        yield Difference("text.ensemble", "false", "true")


def _order(run: RunResults, published: PublishedResult) -> Iterator[Difference]:
    order, labels = run.manifest.class_order, published.labels
    if labels and list(labels[: len(order)]) == order:  # a run may learn the first tasks only
        return
    names = [name_order(run.manifest.config), published.order_name or NOT_STATED]
    if names[0] == names[1]:  # of other numbers of classes, or of lists
        names[0] += f" of {len(order)} classes, first {first_few(order, 3)}"
        names[1] += f", first {first_few(labels or (), 3)}"
    yield Difference("class order", *names)


def _model(run: RunResults, published: PublishedResult) -> Iterator[Difference]:
    arch = run.protocol.settings["model.arch"]
    if arch != published.arch:
        yield Difference("architecture", arch, published.arch or NOT_STATED)
    weights = setting_of(run.manifest.config, "model.weights")
    if published.weights not in (weights or "", run.manifest.backbone_sha256):
        mine = weights or f"sha256 {run.manifest.backbone_sha256[:8]}…"
        yield Difference("weights", storage.redact(mine), published.weights or NOT_STATED)


def _evaluation(run: RunResults, published: PublishedResult) -> Iterator[Difference]:
    if run.evaluation.split != "test":
        yield Difference("evaluation.split", run.evaluation.split, "test")
    if run.evaluation.label_space != published.tested_among:
        yield Difference(
            "evaluation.label_space", run.evaluation.label_space, published.tested_among
        )
    if run.evaluation.exclude_tasks:
        yield Difference("evaluation.exclude_tasks", str(run.evaluation.exclude_tasks), "0")
    transform = setting_of(run.manifest.config, "data.eval_transform")
    if published.eval_transforms and transform not in published.eval_transforms:
        theirs = " or ".join(published.eval_transforms)
        yield Difference("data.eval_transform", transform, theirs)
    # Of tasks with equally many images, both means are the same.
    is_micro = published.sequence is None and len(set(run.counts.images[-1])) > 1
    if published.metric == "macro" and is_micro:
        yield Difference("metric", "micro", "macro")


def _splits_by_name(run: RunResults, published: PublishedResult) -> Iterator[str]:
    """The splits of which the catalogue has no hash."""
    for each in run.manifest.benchmarks:
        if each and not published.splits_of(each.benchmark)[each.split].sha256:
            yield f"{each.benchmark} {each.split}" if published.sequence else each.split


def _describe(run: RunResults) -> str:
    config, benchmarks = run.manifest.config, run.manifest.benchmarks
    weights = setting_of(config, "model.weights") or run.manifest.backbone_sha256[:8]
    facts = [
        " + ".join(f"{each.benchmark}, split {each.split}" for each in benchmarks if each),
        name_sizes([len(names) for names in run.tasks]),
        f"label space {run.evaluation.label_space}"
        if len(benchmarks) > 1
        else f"order {name_order(config)}",
        f"{run.protocol.settings['model.arch']} {storage.redact(weights)}",
    ]
    return ", ".join(facts)
