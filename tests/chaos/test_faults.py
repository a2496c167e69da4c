"""The faults of a round depend on its number and the seed only."""

from __future__ import annotations

import pytest

from tests.chaos.faults import KINDS, STORAGE, draw_faults

LOCAL = [kind for kind in KINDS if kind != STORAGE]


def test_round_is_drawn_from_its_number_and_the_seed_alone():
    forward = [draw_faults(3, number, LOCAL) for number in range(1, 60)]
    backward = [draw_faults(3, number, LOCAL) for number in reversed(range(1, 60))]
    assert forward == backward[::-1]
    assert forward != [draw_faults(4, number, LOCAL) for number in range(1, 60)]
    assert len(set(forward)) == len(forward)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_as_many_rounds_as_kinds_see_every_kind(seed):
    kinds = list(KINDS)
    for cycle in range(3):
        numbers = range(1 + cycle * len(kinds), 1 + (cycle + 1) * len(kinds))
        seen = {fault.kind for number in numbers for fault in draw_faults(seed, number, kinds)}
        assert seen == set(kinds)


def test_faults_of_a_round_are_in_the_order_of_the_run():
    rounds = [draw_faults(1, number, LOCAL) for number in range(1, 200)]
    assert {len(faults) for faults in rounds} == {1, 2, 3}
    for faults in rounds:
        places = [fault.place for fault in faults]
        assert places == sorted(places)
        for fault in faults:
            kind = KINDS[fault.kind]
            assert fault.victim in kind.victims and fault.moment in kind.moments
            assert fault.signal in kind.signals
