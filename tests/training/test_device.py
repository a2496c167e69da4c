"""The step and the tests of a run on two GPUs that are not there; see ``tests.fake_gpu``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

import pipeline.training.engine as engine_module
from pipeline.distributed.world import World
from pipeline.methods.base import Method
from pipeline.training.encoder import EncodedBatch
from pipeline.training.engine import Engine
from pipeline.training.features import FrozenFeatures, in_equal_parts
from pipeline.training.scoring import score_task
from tests.fake_gpu import GPU, N_IMAGES, FakeClip, NoWaiting, draw
from tests.tiny import build_config, tiny_tasks
from tests.variants import EVERY_TASK, build_variant

WORLD = World(rank=1, world_size=2, local_rank=0, device=GPU)
FIRST, SECOND, _ = tiny_tasks()


@pytest.fixture(autouse=True)
def two_ranks() -> Iterator[None]:
    """A process group of two ranks whose collectives only have shapes."""
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    yield
    dist.destroy_process_group()


class ForwardEngine(Engine):
    """The engine without DeepSpeed, and with zeros as gradients; keeps what it would apply."""

    def __init__(self, method: Method) -> None:
        config = build_config("none", "none", data={"global_batch": 2 * N_IMAGES})
        self.applied: list[Tensor] = []
        self._method, self._world, self._optim = method, WORLD, config.optim
        self._run_seed, self._n_steps, self._recompute = 1, 2, False
        self._span = engine_module.no_span
        self.micro_batch = 5
        self._trainable = {n: p for n, p in method.named_parameters() if p.requires_grad}
        self._engine = self
        self.optimizer = torch.optim.AdamW(self._trainable.values())

    def _gradients(self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], grad_outputs=None):
        for output, grad in zip(outputs, grad_outputs or (), strict=False):
            assert (output.shape, output.device) == (grad.shape, grad.device)
        return tuple(map(torch.zeros_like, [*inputs, *self._trainable.values()]))

    def _apply(self, gradient_X: Tensor) -> None:
        self.applied.append(gradient_X)


@pytest.fixture
def reading(monkeypatch) -> None:
    """What is read back from the GPU is a number and finite."""
    monkeypatch.setattr(engine_module, "start_reading", lambda value: lambda: torch.zeros(()))
    monkeypatch.setattr(FakeTensor, "__bool__", lambda tensor: True)
    monkeypatch.setattr(FakeTensor, "__int__", lambda tensor: 0)
    monkeypatch.setattr(FakeTensor, "__float__", lambda tensor: 0.0)


@pytest.mark.parametrize("label", EVERY_TASK)
def test_step_of_two_ranks_has_its_operands_on_the_gpu(fake_clip: FakeClip, reading, label):
    """must hold up to the gradient that DeepSpeed is given; nothing lets the host wait"""
    method = build_variant(label, fake_clip)
    method.begin_task(FIRST)
    method.end_task(FIRST)
    method.begin_task(SECOND)
    image_BCHW, label_B, features = draw(fake_clip, SECOND)
    engine, inputs = ForwardEngine(method), method.inputs
    images = image_BCHW.to(GPU) if inputs.images else None
    with NoWaiting():
        losses = engine.step(0, images, label_B, features if inputs.features else None)
    (gradient_X,) = engine.applied
    assert gradient_X.device == GPU
    assert gradient_X.numel() == sum(p.numel() for p in engine._trainable.values())
    assert losses.total.device.type == "cpu"


def test_test_of_a_task_has_its_operands_on_the_gpu(fake_clip: FakeClip, reading):
    method = build_variant("tppt_vt", fake_clip)
    method.begin_task(FIRST)
    method.end_task(FIRST)
    image_BCHW, label_B, features = draw(fake_clip, FIRST)
    encoded = [
        EncodedBatch(method.encode(image_BCHW, features), label_B, torch.arange(len(label_B)))
    ]
    score = score_task(method, encoded, task=FIRST)
    assert score.class_mean_CE.device == score.embedding_sum_E.device == GPU


def test_frozen_features_of_a_batch_are_found_without_waiting(fake_clip: FakeClip, monkeypatch):
    """must copy positions, which are found in host memory, while the GPU works"""
    monkeypatch.setattr(FakeTensor, "pin_memory", lambda tensor: tensor)  # needs a GPU
    _, label_B, features = draw(fake_clip, FIRST)
    frozen = FrozenFeatures(torch.arange(N_IMAGES), label_B, features)
    with NoWaiting():
        found = frozen.of(torch.tensor([7, 3]))
    assert {(len(column), column.device) for column in found} == {(2, GPU)}


@pytest.mark.parametrize(
    "work", [lambda gpu: gpu[[0, 2]], lambda gpu: gpu.cpu(), lambda gpu: gpu[0].item()]
)
def test_waiting_for_the_gpu_is_refused(fake_clip: FakeClip, work):
    """must see the fault that the tests above look for"""
    value = torch.zeros(3, device=GPU)
    with NoWaiting(), pytest.raises(Exception, match="the host waits for"):
        work(value)


def test_parts_of_the_frozen_tower_are_filled_up_on_the_gpu(fake_clip: FakeClip):
    image_BCHW, _, _ = draw(fake_clip, FIRST)
    columns = in_equal_parts(image_BCHW.to(GPU), fake_clip.encode_image, 8)
    assert {column.device for column in columns} == {GPU}
    assert {len(column) for column in columns} == {N_IMAGES}
