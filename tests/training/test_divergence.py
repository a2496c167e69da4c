"""A loss that is not finite ends a run with its place, or is skipped and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.classifiers import Embedded
from pipeline.config import Config
from pipeline.data.index import read_index
from pipeline.data.plan import EpochKey, epoch_order, global_batches
from pipeline.errors import DivergenceError
from pipeline.methods import METHODS
from pipeline.methods.base import Losses
from pipeline.methods.finetune import Finetune
from pipeline.output.recovery import snapshot_folder
from pipeline.output.snapshots import read_latest
from pipeline.training.checked_run import check_run
from pipeline.training.engine import Engine
from tests.interruptions import Reference, StopAt, changed, start
from tests.tiny import build_config, build_context, draw_batch, tiny_tasks

pytestmark = pytest.mark.usefixtures("one_clip")


class Fragile(Finetune):
    """Its loss is nan for a batch of the second task with three images of one class."""

    def losses(self, embedded: Embedded, label_N: Tensor) -> Losses:
        losses = super().losses(embedded, label_N)
        if not is_hard(label_N, self.task.index):
            return losses
        lost = losses.total * float("nan")
        return Losses(lost, {"lost": lost})


def is_hard(label_N: Tensor, task: int) -> bool:
    return task == 1 and int(torch.bincount(label_N).max()) >= 3


@pytest.fixture
def fragile(tiny_arch, tiny_shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setitem(METHODS, "fragile", Fragile)
    return build_config(
        tiny_arch, tiny_shards, output=str(tmp_path / "run"), method={"name": "fragile"},
        snapshot={"every_steps": 2},
    )  # fmt: skip


def hard_steps(config: Config) -> list[tuple[int, list[str]]]:
    """The steps of the second task whose loss is nan, and their samples, from the plan."""
    task = check_run(config, 1).tasks[1]
    selection = read_index(config.data.index).select("train", task.labels)
    class_of_label = {label: task.first + place for place, label in enumerate(task.labels)}
    steps = []
    for epoch in range(config.optim.epochs):
        order = epoch_order(selection, EpochKey(config.seed, 1, epoch))
        steps += list(global_batches(order, global_batch=4, tail="wrap"))
    return [
        (step, [selection.keys[row] for row in rows])
        for step, rows in enumerate(steps)
        if is_hard(torch.tensor([class_of_label[int(selection.label_S[r])] for r in rows]), 1)
    ]


def tolerant(config: Config, budget: int, **sections: Any) -> Config:
    optim = {"on_nonfinite_loss": "skip", "nonfinite_loss_budget": budget}
    return changed(config, optim=optim, **sections)


def test_error_names_task_step_and_samples_and_the_snapshot_stays(fragile):
    """must leave an earlier snapshot, from which a more tolerant run ends with the same results"""
    step, keys = hard_steps(fragile)[0]
    words = f"task 2, step {step + 1}: the loss is nan on samples {', '.join(keys)}; lower optim"
    with pytest.raises(DivergenceError) as caught:
        start(fragile)
    assert str(caught.value).startswith(words)
    snapshot = read_latest(snapshot_folder(fragile))
    assert (snapshot.task, snapshot.step) == (1, step - step % 2)

    config = tolerant(fragile, 20)
    assert start(config)
    Reference(tolerant(fragile, 20, output=f"{fragile.output}-afresh")).assert_equals_run(config)


def test_skipped_steps_are_counted_within_their_budget(fragile):
    """must also count the steps that were skipped before an interruption"""
    hard = hard_steps(fragile)
    assert len(hard) >= 2, "the test needs two such steps"
    reference = Reference(tolerant(fragile, len(hard), output=f"{fragile.output}-undisturbed"))
    assert reference.content.results["skipped_steps"] == [
        {"task": 1, "step": step, "loss": "nan", "samples": keys} for step, keys in hard
    ]
    config = tolerant(fragile, len(hard))
    for count in (22, 8, 9):  # in the first task, then twice in the second
        assert not start(config, StopAt(count))
    assert start(config)
    reference.assert_equals_run(config)

    short = tolerant(fragile, len(hard) - 1, output=f"{fragile.output}-short")
    assert not start(short, StopAt(22))
    step = hard[-1][0]
    words = f"task 2, step {step + 1}: .*; {len(hard)} such steps exceed optim.nonfinite_loss_bud"
    with pytest.raises(DivergenceError, match=words):
        start(short)


class Breakable(Finetune):
    """Its loss is infinite while ``broken``."""

    broken = False

    def losses(self, embedded: Embedded, label_N: Tensor) -> Losses:
        losses = super().losses(embedded, label_N)
        return Losses(losses.total / 0.0, losses.terms) if self.broken else losses


@pytest.mark.parametrize(
    "layout", [{}, {"zero_stage": 1}, {"micro_batch": 2, "recompute": True}], ids=str
)
def test_step_with_a_loss_that_is_not_finite_changes_nothing(alone, tiny_clip, layout):
    """must leave tensors and optimizer state unchanged, so that the next step is as usual"""
    config = build_config("none", "none", engine=layout)
    task = tiny_tasks()[0]
    learned = []
    for broken in (False, True):
        method = Breakable(build_context(tiny_clip), Breakable.Options())
        method.begin_task(task)
        engine = Engine(method, config, alone, n_steps=9)
        engine.step(0, *draw_batch(tiny_clip, task, 4, seed=0))
        if broken:
            method.broken = True
            before = engine.optimizer_state()
            assert float(engine.step(1, *draw_batch(tiny_clip, task, 4, seed=1)).total) == torch.inf
            assert all(
                value.equal(before[name]) for name, value in engine.optimizer_state().items()
            )
            method.broken = False
        engine.step(2, *draw_batch(tiny_clip, task, 4, seed=2))
        learned.append({name: p.detach().clone() for name, p in method.named_parameters()})
        engine.close()
    assert all(learned[1][name].equal(value) for name, value in learned[0].items())


class Overflowing(Finetune):
    """Its loss is finite, but the last step of the first task gives an infinite prompt."""

    def losses(self, embedded: Embedded, label_N: Tensor) -> Losses:
        losses = super().losses(embedded, label_N)
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 10:  # the last step: no later loss can show it
            self.visual_prompts.chunks[0].prompt_DMLV.register_hook(lambda grad: grad * torch.inf)
        return losses


def test_tensors_that_are_not_finite_are_never_in_a_snapshot(fragile, monkeypatch):
    """must also find them at the end of a task, where no later loss shows them"""
    monkeypatch.setitem(METHODS, "fragile", Overflowing)
    config = changed(fragile, optim={"gradient_clipping": 0.0})
    with pytest.raises(DivergenceError, match="task 1, step 10: learned/visual_prompts.* holds"):
        start(config)
    snapshot = read_latest(snapshot_folder(config))
    assert (snapshot.task, snapshot.step) == (0, 8)
