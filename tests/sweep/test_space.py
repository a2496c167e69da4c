"""The settings that a sweep may change; a wrong space is refused before anything starts."""

from __future__ import annotations

import pytest

from pipeline.errors import ConfigError
from pipeline.sweep.config import SamplerSettings
from pipeline.sweep.searcher import Proposer
from pipeline.sweep.space import Space, parse_space, with_settings

SETTINGS = {
    "seed": 1,
    "method": {"name": "tppt_vt", "options": {}},
    "optim": {"learning_rate": 1e-3, "epochs": 2},
}
TREE = {
    "method.name": {"choice": ["finetune", "tppt_vt"]},
    "optim": {"learning_rate": {"log_uniform": ["1e-4", 1e-2]}, "epochs": {"int": [1, 3]}},
    "method.options.tppt_vt": {
        "text_to_image.weight": {"uniform": [0, 1], "when": {"method.name": "tppt_vt"}}
    },
}
WEIGHT = "method.options.tppt_vt.text_to_image.weight"


@pytest.fixture
def space() -> Space:
    return parse_space(TREE, SETTINGS)


def test_nested_entries_equal_dotted_ones(space):
    assert list(space.domains) == ["method.name", "optim.learning_rate", "optim.epochs", WEIGHT]
    assert space.domains["optim.learning_rate"].extremes == [1e-4, 1e-2]


def test_a_conditional_setting_is_drawn_only_if_its_condition_holds(space):
    for method in ("finetune", "tppt_vt"):
        drawn = space.draw(
            lambda key, domain, method=method: (
                method if key == "method.name" else domain.extremes[0]
            )
        )
        assert (WEIGHT in drawn) == (method == "tppt_vt")


def test_a_condition_may_be_on_a_setting_that_is_not_drawn():
    entry = {"uniform": [0, 1], "when": {"method.name": "tppt_vt"}}
    for method, n_drawn in (("tppt_vt", 1), ("finetune", 0)):
        settings = with_settings(SETTINGS, {"method.name": method})
        drawn = parse_space({WEIGHT: entry}, settings).draw(lambda key, domain: 0.5)
        assert len(drawn) == n_drawn


def test_corners_reach_both_ends_of_every_setting(space):
    corners = list(space.corners())
    for key, domain in space.domains.items():
        assert {corner[key] for corner in corners if key in corner} >= set(domain.extremes)


def test_parameters_replace_their_settings_and_no_others(space):
    applied = with_settings(space.settings, {"optim.epochs": 3, WEIGHT: 0.5})
    assert applied["optim"] == {"learning_rate": 1e-3, "epochs": 3}
    assert applied["method"]["options"] == {"tppt_vt": {"text_to_image": {"weight": 0.5}}}
    assert SETTINGS["optim"]["epochs"] == 2 and SETTINGS["method"]["options"] == {}


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"seed": {"int": [1, 2]}}, "seed: is the same in every trial"),
        ({"tasks.limit": {"int": [1, 2]}}, "tasks.limit: is the same in every trial"),
        ({"data.index": {"choice": ["a"]}}, "data.index: is the same in every trial"),
        ({"optim": {"epochs": 3}}, "optim: must have one of uniform, log_uniform, int, choice"),
        ({"optim.epochs": 3}, "optim.epochs: must be one of .* found 3"),
        ({"optim.epochs": {"int": [3, 3]}}, r"\[3, 3\] is empty"),
        ({"optim.epochs": {"int": [1.5, 3]}}, "int.0: input should be a valid integer"),
        ({"optim.epochs": {"int": [1, 3], "choice": [1]}}, "give exactly one of"),
        ({"optim.epochs": {"when": {"seed": 1}}}, "give exactly one of"),
        ({"optim.epochs": {"choice": []}}, "choice: "),
        ({"optim.epochs": {"int": [1, 3], "wen": {}}}, "did you mean 'when'"),
        ({"optim.learning_rate": {"log_uniform": [0, 1]}}, "must start above 0"),
        ({"optim.epochs": {"int": [1, 3], "when": {"a.b": 1}}}, "its condition names a.b"),
        (
            {"method.name": {"choice": ["a"]}, "b": {"int": [1, 2], "when": {"method.name": "c"}}},
            "the choices of method.name are",
        ),
        ({"optim.epochs": {"int": [1, 3]}, "optim": {"epochs": {"int": [1, 3]}}}, "appears twice"),
    ],
)
def test_error_of_a_wrong_space_names_the_entry_and_its_fault(tree, words):
    with pytest.raises(ConfigError, match=words):
        parse_space(tree, SETTINGS)


def test_given_parameters_must_be_in_the_space(space):
    given = {"method.name": "finetune", "optim.learning_rate": 1e-3, "optim.epochs": 2}
    assert space.validate(given) == given
    with pytest.raises(ConfigError, match="first: optim.epochs must be int .1, 3., found 7"):
        space.validate(given | {"optim.epochs": 7})
    with pytest.raises(ConfigError, match="first: optim.epochs must be int .1, 3., found None"):
        space.validate({"method.name": "finetune", "optim.learning_rate": 1e-3})
    with pytest.raises(ConfigError, match="weight is not drawn together with"):
        space.validate(given | {WEIGHT: 0.5})


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_proposed_parameters_are_in_the_space(space, sampler):
    proposer = Proposer(
        space, SamplerSettings(name=sampler), "average_incremental_accuracy", trials=40
    )
    drawn = [proposer.propose(number) for number in range(40)]
    assert all(space.validate(parameters) == parameters for parameters in drawn)
    assert {parameters["method.name"] for parameters in drawn} == {"finetune", "tppt_vt"}
    assert {type(parameters["optim.epochs"]) for parameters in drawn} == {int}
