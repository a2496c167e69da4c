"""A step is a plain AdamW step on the loss of the global batch, whatever the layout."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.classifiers import Embedded
from pipeline.config import Config
from pipeline.distributed.world import World
from pipeline.methods.base import Losses, Method
from pipeline.methods.finetune import Finetune
from pipeline.model.backbone import FrozenClip, ImageFeatures
from pipeline.model.weights import load_clip
from pipeline.training.engine import Engine, deepspeed_config, layout_problem
from pipeline.training.schedule import learning_rate_factor
from tests.ranks import run_ranks
from tests.tiny import build_config, build_context, draw_batch, tiny_tasks
from tests.variants import EVERY_TASK, build_variant

FIRST, SECOND, _ = tiny_tasks()
GLOBAL_BATCH = 8
ALONE = World(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))


def configure(*, global_batch: int = GLOBAL_BATCH, **sections: Any) -> Config:
    return build_config("none", "none", data={"global_batch": global_batch}, **sections)


@pytest.mark.parametrize("clipping", [0.0, 0.7])
@pytest.mark.parametrize("zero_stage", [0, 1])
@pytest.mark.parametrize("world_size", [1, 2, 8])
def test_deepspeed_is_told_everything_it_would_guess(clipping, zero_stage, world_size):
    """must always write the clipping, which DeepSpeed sets to 1 by itself"""
    config = configure(optim={"gradient_clipping": clipping}, engine={"zero_stage": zero_stage})
    settings = deepspeed_config(config, world_size)
    assert settings["gradient_clipping"] == clipping
    assert settings["zero_optimization"] == {"stage": zero_stage}
    assert settings["train_batch_size"] == GLOBAL_BATCH
    assert settings["train_micro_batch_size_per_gpu"] == GLOBAL_BATCH // world_size
    assert settings["gradient_accumulation_steps"] == 1
    assert settings == deepspeed_config(config, world_size)  # pure


def test_precision_is_never_left_to_deepspeed():
    """must not hold a precision block: it would cast the learned tensors"""
    settings = deepspeed_config(configure(), 2)
    assert not {"bf16", "fp16", "torch_autocast", "amp", "optimizer", "scheduler"} & settings.keys()


@pytest.mark.parametrize(("global_batch", "world_size"), [(8, 3), (4, 8)])
def test_batch_that_cannot_be_shared_is_told(global_batch, world_size):
    problem = layout_problem(configure(global_batch=global_batch), world_size)
    assert problem.startswith(
        f"data.global_batch: {global_batch} images cannot be shared equally by {world_size} ranks"
    )


Rows = tuple[Tensor, Tensor, ImageFeatures | None]


def share_of(world: World, method: Method, clip: FrozenClip, seed: int) -> Rows:
    """This rank's rows of a global batch sorted by class: ranks see different classes."""
    image_BCHW, label_B, frozen = draw_batch(clip, method.task, GLOBAL_BATCH, seed)
    rows = label_B.argsort(stable=True).chunk(world.world_size)[world.rank]
    features = (
        ImageFeatures(*(column[rows] for column in frozen)) if method.inputs.features else None
    )
    return image_BCHW[rows], label_B[rows], features


def second_task(label: str, clip: FrozenClip) -> Method:
    """A method at the start of its second task, so that there are old chunks and classes."""
    method = build_variant(label, clip)
    method.begin_task(FIRST)
    method.end_task(FIRST)
    method.begin_task(SECOND)
    return method


@contextmanager
def engine_of(method: Method, config: Config, world: World, n_steps: int) -> Iterator[Engine]:
    engine = Engine(method, config, world, n_steps)
    yield engine
    engine.close()


# Parts of the global batch. Four ranks have two images each, so that three are no other part.
WHOLE, UNEVEN = {"micro_batch": 8}, {"micro_batch": 3}
RECOMPUTED = {"micro_batch": 1, "recompute": True}
PARTS = {1: (WHOLE, UNEVEN, RECOMPUTED), 2: (WHOLE, UNEVEN, RECOMPUTED), 4: (WHOLE, RECOMPUTED)}


def first_steps(world: World, arch: str) -> list[dict[str, dict[str, Any]]]:
    """For all parts and each variant what :func:`take_steps_in` tells of one step."""
    clip = load_clip(arch, None, device=world.device)
    optim = {"gradient_clipping": 0.0}
    configs = [configure(optim=optim, engine=engine) for engine in PARTS[world.world_size]]
    return [
        {label: take_steps_in(world, clip, label, config, 1) for label in EVERY_TASK}
        for config in configs
    ]


@pytest.fixture(scope="module")
def plain_gradients(tiny_clip: FrozenClip) -> dict[str, dict[str, Any]]:
    """For each variant the loss of a batch and its gradients, in one graph."""
    answer = {}
    for label in EVERY_TASK:
        method = second_task(label, tiny_clip)
        loss = method(*share_of(ALONE, method, tiny_clip, 0)).total
        loss.backward()
        learned = {n: p.grad for n, p in method.named_parameters() if p.requires_grad}
        answer[label] = {"loss": loss.item(), "gradients": learned}
    return answer


@pytest.mark.parametrize("world_size", PARTS)
def test_gradient_is_that_of_the_global_batch(world_size, plain_gradients, tiny_arch):
    """must hold with different classes on each rank, in any parts"""
    for answer in run_ranks(first_steps, world_size, tiny_arch):
        for found, engine in zip(answer, PARTS[world_size], strict=True):
            for label, expected in plain_gradients.items():
                assert found[label]["losses"] == pytest.approx([expected["loss"]], 1e-5), engine
                assert_same_tensors(found[label]["gradients"], expected["gradients"], 1e-5)


def assert_same_tensors(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float) -> None:
    """Equal to ``rtol`` of each tensor's own size."""
    assert found.keys() == expected.keys() and expected
    for name in expected:
        error = (found[name] - expected[name]).norm().item()
        assert error <= rtol * expected[name].norm().item() + 1e-9, (name, error)


def take_steps(
    world: World, arch: str, label: str, layouts: list[dict[str, Any]], n_steps: int
) -> list[dict[str, Any]]:
    """For each layout: the losses, what the method has learned and what it has not.

    ``gradients`` are the last that the optimizer was given, of ZeRO stage 0 only.
    """
    clip = load_clip(arch, None, device=world.device)
    return [take_steps_in(world, clip, label, configure(**layout), n_steps) for layout in layouts]


def take_steps_in(
    world: World, clip: FrozenClip, label: str, config: Config, n_steps: int
) -> dict[str, Any]:
    method, gradients = second_task(label, clip), {}
    active = {name: p for name, p in method.named_parameters() if p.requires_grad}
    before = {name: value.clone() for name, value in method.state_dict().items()}

    def keep(*_: Any) -> None:
        gradients.update({n: p.grad.clone() for n, p in active.items() if p.grad is not None})

    with engine_of(method, config, world, n_steps) as engine:
        engine._optimizer.register_step_pre_hook(keep)
        losses = [
            engine.step(number, *share_of(world, method, clip, number)).total.item()
            for number in range(n_steps)
        ]
    state = {name: value.clone() for name, value in method.state_dict().items()}
    learned = {name: state[name] for name in active}
    frozen = {name: state[name] for name in state.keys() - active.keys()}
    for name, value in frozen.items():
        assert torch.equal(value, before[name]), name
    return {"losses": losses, "gradients": gradients, "learned": learned, "frozen": frozen}


def test_every_layout_learns_the_same(alone, tiny_arch):
    """must hold for ranks, ZeRO stages and gradient caching, with clipping, decay and momentum"""
    optim = {"gradient_clipping": 0.5, "weight_decay": 0.1, "learning_rate": 0.01}
    label = "anchors kept as learned"  # the one with the most kinds of tensors
    (expected,) = take_steps(alone, tiny_arch, label, [{"optim": optim}], 3)
    layouts = [
        {"optim": optim},
        {"optim": optim, "engine": {"zero_stage": 1}},
        {"optim": optim, "engine": {"zero_stage": 0, "micro_batch": 2}},
        {"optim": optim, "engine": {"zero_stage": 1, "micro_batch": 2, "recompute": True}},
    ]
    for answer in run_ranks(take_steps, 2, tiny_arch, label, layouts, 3):
        assert_same_tensors(answer[0]["gradients"], expected["gradients"], rtol=1e-4)
        for layout, found in zip(layouts, answer, strict=True):
            assert found["losses"] == pytest.approx(expected["losses"], 1e-4), layout
            assert_same_tensors(found["learned"], expected["learned"], rtol=2e-4)
            # Bit-equal within a process, as take_steps_in checks; another number of threads may
            # already encode the anchors that are kept differently in the last bits.
            assert_same_tensors(found["frozen"], expected["frozen"], rtol=1e-5)


def steps_in_parts(world: World, arch: str, layouts: list[dict[str, Any]]) -> dict[str, list[Any]]:
    clip = load_clip(arch, None, device=world.device)
    return {
        label: [take_steps_in(world, clip, label, configure(**layout), 2) for layout in layouts]
        for label in EVERY_TASK
    }


def test_same_parts_give_the_same_bits_on_any_number_of_ranks(tiny_arch):
    """must hold with Adam's usual epsilon, which makes a rounding error as large as a step"""
    layouts = [
        {
            "optim": {"gradient_clipping": clipping, "weight_decay": 0.1, "learning_rate": 0.01},
            "engine": {"zero_stage": zero_stage, "micro_batch": 2},
        }
        # ZeRO adds up the norm of its shares in an order that depends on their number.
        for zero_stage, clipping in ((0, 0.5), (1, 0.0))
    ]
    (expected,) = run_ranks(steps_in_parts, 1, tiny_arch, layouts)
    for world_size in (2, 4):
        for answer in run_ranks(steps_in_parts, world_size, tiny_arch, layouts):
            for label, layout in product(EVERY_TASK, range(len(layouts))):
                found, wanted = answer[label][layout], expected[label][layout]
                assert found["losses"] == wanted["losses"], (label, world_size, layout)
                for name, value in wanted["learned"].items():
                    assert torch.equal(found["learned"][name], value), (label, world_size, name)


class Noisy(Finetune):
    """Draws at random in both of its halves."""

    def embed(self, image_BCHW: Tensor | None, features: ImageFeatures | None) -> Embedded:
        return dropped(super().embed(image_BCHW, features))

    def losses(self, embedded: Embedded, label_N: Tensor) -> Losses:
        return super().losses(dropped(embedded), label_N)


def dropped(embedded: Embedded) -> Embedded:
    """Embeddings of which half the values are zero."""
    return embedded._replace(embedding_BE=F.dropout(embedded.embedding_BE))


def noisy_steps(world: World, arch: str) -> list[dict[str, Any]]:
    """The outcomes of steps that keep, and that recompute, the activations of their parts."""
    clip = load_clip(arch, None, device=world.device)
    return [noisy_steps_in(world, clip, recompute) for recompute in (False, True)]


def noisy_steps_in(world: World, clip: FrozenClip, recompute: bool) -> dict[str, Any]:
    method = Noisy(build_context(clip), Noisy.Options())
    method.begin_task(FIRST)
    config = configure(engine={"micro_batch": 2, "recompute": recompute})
    with engine_of(method, config, world, 3) as engine:
        totals = [
            engine.step(number, *share_of(world, method, clip, number)).total.item()
            for number in range(3)
        ]
    return {"losses": totals, "learned": dict(method.state_dict())}


def test_what_is_drawn_at_random_does_not_depend_on_the_number_of_ranks(tiny_arch):
    """must hold in a second pass too, or its gradient would be that of another loss"""
    (alone,) = run_ranks(noisy_steps, 1, tiny_arch)
    kept, recomputed = alone
    assert_same_tensors(recomputed["learned"], kept["learned"], rtol=1e-4)
    for answer in run_ranks(noisy_steps, 2, tiny_arch):
        for found, expected in zip(answer, alone, strict=True):
            assert found["losses"] == expected["losses"]
            assert all(torch.equal(found["learned"][n], v) for n, v in expected["learned"].items())


@pytest.mark.parametrize("zero_stage", [0, 1])
@pytest.mark.parametrize("clipping", [0.0, 0.05])
def test_step_is_plain_adamw_with_clipping(alone, tiny_clip, zero_stage, clipping):
    optim = {
        "gradient_clipping": clipping, "weight_decay": 0.1, "learning_rate": 0.01,
        "betas": (0.8, 0.95), "warmup_steps": 2,
    }  # fmt: skip
    config = configure(optim=optim, engine={"zero_stage": zero_stage})
    ours, plain = second_task("tppt_vt", tiny_clip), second_task("tppt_vt", tiny_clip)
    with engine_of(ours, config, alone, 4) as engine:
        for number in range(4):
            engine.step(number, *share_of(alone, ours, tiny_clip, number))
    active = [parameter for parameter in plain.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(active, betas=(0.8, 0.95), weight_decay=0.1)
    for number in range(4):
        factor = learning_rate_factor(number, 4, warmup_steps=2, kind="cosine")
        optimizer.param_groups[0]["lr"] = 0.01 * factor
        optimizer.zero_grad()
        plain(*share_of(alone, plain, tiny_clip, number)).total.backward()
        if clipping:
            torch.nn.utils.clip_grad_norm_(active, clipping)
        optimizer.step()
    assert_same_tensors(dict(ours.named_parameters()), dict(plain.named_parameters()), rtol=1e-5)


def test_learning_rate_follows_the_schedule(alone, tiny_clip):
    config = configure(optim={"learning_rate": 0.5, "warmup_steps": 2})
    with engine_of(second_task("finetune", tiny_clip), config, alone, 4) as engine:
        assert [engine.learning_rate(step) for step in range(4)] == [0.25, 0.5, 0.5, 0.25]


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_tensor_that_is_not_learned_is_not_stepped(alone, tiny_clip, zero_stage):
    """must hold with weight decay and momentum, which move whatever DeepSpeed was given"""
    config = configure(
        optim={"weight_decay": 0.3, "learning_rate": 0.1}, engine={"zero_stage": zero_stage}
    )
    method = second_task("anchors kept as learned", tiny_clip)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    active = {name for name, p in method.named_parameters() if p.requires_grad}
    with engine_of(method, config, alone, 3) as engine:
        for number in range(3):
            engine.step(number, *share_of(alone, method, tiny_clip, number))
    old = before.keys() - active
    assert len(old) == 5  # the first task's chunk of three tensors, its residuals, its anchors
    for name, value in method.state_dict().items():
        assert torch.equal(value, before[name]) == (name in old), name


def test_deepspeed_builds_no_extension(alone, tiny_clip):
    """must run on a machine without a compiler"""
    import deepspeed

    with engine_of(second_task("finetune", tiny_clip), configure(), alone, 1):
        assert deepspeed.comm.comm.cdb.shm_comm_op is None


def resident_bytes() -> int:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_rebuilding_the_engine_for_each_task_keeps_memory_flat(alone, tiny_clip):
    """must hold over many tasks: an engine that is closed leaves nothing behind"""
    method, config = second_task("tppt_v", tiny_clip), configure()
    rows = share_of(alone, method, tiny_clip, 0)

    def rebuild(times: int) -> int:
        for _ in range(times):
            with engine_of(method, config, alone, 1) as engine:
                engine.step(0, *rows)
        return resident_bytes()

    settled = rebuild(5)
    assert rebuild(25) - settled < 8 << 20
