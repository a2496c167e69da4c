"""The size of a part is the fastest that fits; on a CPU it is fixed."""

from __future__ import annotations

import pytest
import torch

from pipeline.distributed.world import World
from pipeline.training.engine import Engine
from pipeline.training.micro_batch import CPU_MICRO_BATCH, choose_micro_batch, fastest
from tests.tiny import build_config, tiny_tasks
from tests.variants import build_variant

ALONE = World(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("share", "seconds", "expected"),
    [
        (64, {1: 1, 2: 1.1, 4: 1.3, 8: 2, 16: 4, 32: 8, 64: 16}, 8),  # no gain above 8
        (64, {1: 1, 2: 1.98, 4: 3.9, 8: 7.7, 16: 15.4, 32: 30.7, 64: 61}, 8),  # too small a gain
        (64, {1: 1, 2: 1, 4: 1, 8: 1, 16: None}, 8),  # memory
        (6, {1: 1, 2: 1, 4: 1}, 4),  # a rank's share
        (64, {1: None}, 1),
    ],
)
def test_fastest_size_that_fits_is_taken(share, seconds, expected):
    """must ask for no size above one without memory"""
    assert fastest(share, seconds.__getitem__) == expected


def test_size_is_fixed_on_a_cpu_and_kept_where_it_is_set(alone, tiny_clip):
    """must be the value that configurations had before it could be left unset"""
    method = build_variant("finetune", tiny_clip)
    method.begin_task(tiny_tasks()[0])
    assert choose_micro_batch(method, 64, ALONE) == CPU_MICRO_BATCH == 16
    for given, chosen_before, expected in ((None, None, 16), (None, 8, 8), (3, 8, 3)):
        config = build_config("none", "none", engine={"micro_batch": given})
        engine = Engine(method, config, ALONE, 1, micro_batch=chosen_before)
        assert engine.micro_batch == expected
        engine.close()
