"""Published results beside runs: only those of the same protocol; of others, which facts differ.

A fact that a source does not state counts as a difference. The metric and the test transform are
rarely stated, so they count only where they are; exemplars are a column of every table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline import storage
from pipeline.catalogue.entry import Split, read_benchmark
from pipeline.catalogue.published import PublishedResult
from pipeline.output.protocol import setting_of
from pipeline.output.results import RunResults
from pipeline.reporting.protocols import Difference, name_order, name_sizes
from pipeline.reporting.run_groups import RunTable
from pipeline.text import first_few

NOT_STATED = "not stated"


@dataclass(frozen=True)
class PublishedRows:
    """The published results on the benchmark of a table of runs, best first."""

    protocol: str  # that of the runs, in words
    same: list[PublishedResult]  # of the same protocol
    others: list[tuple[PublishedResult, list[Difference]]]  # nearest first, with what differs
    split_by_name: str | None = None  # the split, if the catalogue has no hash of its images
    unnamed: str | None = None  # the output of a run that names no benchmark; then no result fits


def find_published(table: RunTable, published: Sequence[PublishedResult]) -> PublishedRows:
    """The results of ``published`` on the benchmark of the runs in ``table``."""
    runs = [run for group in table.groups for run in group.runs]
    for run in runs:
        if run.results.manifest.membership is None:
            return PublishedRows("", [], [], unnamed=storage.redact(run.output))
    first = runs[0].results
    membership = first.manifest.membership
    name = membership.benchmark if membership else ""
    same, others = [], []
    for result in sorted(published, key=lambda each: -(each.average or each.last or 0)):
        if result.benchmark == name:
            found = (differences_to_published(run.results, result) for run in runs)
            differences = next(filter(None, found), [])  # with --over order, runs differ
            if differences:
                others.append((result, differences))
            else:
                same.append(result)
    others.sort(key=lambda pair: len(pair[1]))
    return PublishedRows(_describe(first), same, others, _split_by_name(first))


def differences_to_published(run: RunResults, published: PublishedResult) -> list[Difference]:
    """The facts in which the protocol of ``run`` is not, or may not be, the published one."""
    return [*_data(run, published), *_tasks(run, published), *_model(run, published),
            *_evaluation(run, published)]  # fmt: skip


def _data(run: RunResults, published: PublishedResult) -> Iterator[Difference]:
    membership = run.manifest.membership
    if membership is None:
        yield Difference("benchmark", NOT_STATED, published.benchmark)
        return
    if membership.benchmark != published.benchmark:
        yield Difference("benchmark", membership.benchmark, published.benchmark)
        return
    split = read_benchmark(membership.benchmark).splits.get(membership.split)
    if membership.split != published.split:
        yield Difference("split", membership.split, published.split or NOT_STATED)
    elif split is not None and split.sha256 not in (None, membership.sha256):
        yield Difference("images of the split", membership.sha256[:8], str(split.sha256)[:8])
    if split is not None and sum(map(len, run.tasks)) == sum(published.task_sizes):
        yield from _images(run, split)
    held_out = setting_of(run.manifest.config, "data.validation_fraction")
    if held_out:
        yield Difference("data.validation_fraction", f"{held_out:g}", "0")


def _images(run: RunResults, split: Split) -> Iterator[Difference]:
    """Other numbers of images, as ``prepare --allow-other-counts`` accepts them."""
    for fact, found, expected in (
        ("training images", run.manifest.train_images, split.train),
        ("tested images", sum(run.counts.images[-1]), split.test),
    ):
        if expected is not None and found != expected:
            shown = NOT_STATED if found is None else f"{found:,}"
            yield Difference(fact, shown, f"{expected:,}")


def _tasks(run: RunResults, published: PublishedResult) -> Iterator[Difference]:
    sizes = tuple(map(len, run.tasks))
    if sizes != published.task_sizes:
        n_tasks, n_classes = len(published.task_sizes), sum(published.task_sizes)
        theirs = f"{published.protocol} ({n_tasks} tasks, {n_classes} classes)"
        yield Difference("tasks", name_sizes(sizes), theirs)
    yield from _order(run, published)


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
    if run.evaluation.label_space != "seen":
        yield Difference("evaluation.label_space", run.evaluation.label_space, "seen")
    if run.evaluation.exclude_tasks:
        yield Difference("evaluation.exclude_tasks", str(run.evaluation.exclude_tasks), "0")
    transform = setting_of(run.manifest.config, "data.eval_transform")
    if published.eval_transforms and transform not in published.eval_transforms:
        theirs = " or ".join(published.eval_transforms)
        yield Difference("data.eval_transform", transform, theirs)
    # Of tasks with equally many images, both means are the same.
    if published.metric == "macro" and len(set(run.counts.images[-1])) > 1:
        yield Difference("metric", "micro", "macro")


def _split_by_name(run: RunResults) -> str | None:
    membership = run.manifest.membership
    if membership is None:
        return None
    split = read_benchmark(membership.benchmark).splits.get(membership.split)
    return None if split and split.sha256 else membership.split


def _describe(run: RunResults) -> str:
    membership, config = run.manifest.membership, run.manifest.config
    data = f"{membership.benchmark}, split {membership.split}" if membership else NOT_STATED
    weights = setting_of(config, "model.weights") or run.manifest.backbone_sha256[:8]
    return (
        f"{data}, {name_sizes([len(names) for names in run.tasks])}, order {name_order(config)}, "
        f"{run.protocol.settings['model.arch']} {storage.redact(weights)}"
    )
