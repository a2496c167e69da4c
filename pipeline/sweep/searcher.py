"""The parameters of the next trial, from an Optuna study; the only door to Optuna.

A draw depends on the seed, the number of the trial and the outcomes of other trials, never on the
number of starts: trial 7 of a random search is the same in every start of the sweep.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState
from ray.tune.search import Searcher

from pipeline.rng import derive_seed
from pipeline.sweep.config import Metric, SamplerSettings
from pipeline.sweep.space import Domain, Parameters, Space
from pipeline.sweep.trial_table import TrialRecord

_STATES = {
    "finished": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


class Proposer:
    """Draws parameters, and learns from the outcomes of trials."""

    def __init__(self, space: Space, sampler: SamplerSettings, metric: Metric, trials: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = space
        self._settings = sampler
        self._metric = metric
        self._first_draws = min(10, max(4, trials // 3))  # at random, for TPE to learn from
        self._study = optuna.create_study(direction="maximize")
        self._asked: dict[int, optuna.trial.Trial] = {}

    def propose(self, number: int, known: Parameters | None = None) -> Parameters:
        """The parameters of trial ``number``: ``known`` ones if given, else new ones."""
        self._study.sampler = self._sampler(number)
        if known is not None:
            self._study.enqueue_trial({key: self._encode(key, known[key]) for key in known})
        trial = self._asked[number] = self._study.ask()
        drawn = self._space.draw(lambda key, domain: _suggest(trial, key, domain))
        return drawn if known is None else known

    def add_outcome(self, record: TrialRecord) -> None:
        """Learn from an ended trial of this start of the sweep or of an earlier one."""
        parameters = {k: self._encode(k, value) for k, value in record.parameters.items()}
        value, state = record.value(self._metric), _STATES[record.status]
        if record.number in self._asked:
            trial = self._asked.pop(record.number)
            for step, partial in record.values_by_task(self._metric).items():
                trial.report(partial, step)
            self._study.tell(trial, value if state == TrialState.COMPLETE else None, state)
            return
        self._study.add_trial(
            optuna.trial.create_trial(
                state=state,
                value=value if state == TrialState.COMPLETE else None,
                params=parameters,
                distributions={key: _distribution(self._space.domains[key]) for key in parameters},
                intermediate_values=record.values_by_task(self._metric),
            )
        )

    def _encode(self, key: str, value: Any) -> Any:
        """A value in the form that Optuna stores."""
        return json.dumps(value) if self._space.domains[key].choice is not None else value

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = derive_seed("trial", self._settings.seed, number) % 2**32
        if self._settings.name == "random":
            return optuna.samplers.RandomSampler(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # constant_liar is marked experimental
            return optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=self._first_draws, constant_liar=True
            )


class TrialSearcher(Searcher):
    """Gives Ray Tune its next trial: first those with ``known`` parameters, then new ones.

    ``begin`` gives the spec of a trial from its number and parameters.
    """

    def __init__(
        self,
        proposer: Proposer,
        *,
        known: Mapping[int, Parameters],
        new: Sequence[int],
        begin: Callable[[int, Parameters], dict[str, Any]],
        is_over: Callable[[], bool],
    ) -> None:
        super().__init__()
        self._proposer = proposer
        self._known = dict(known)
        self._new = list(new)
        self._begin = begin
        self._is_over = is_over

    @property
    def n_left(self) -> int:
        """The number of trials that were not suggested yet."""
        return len(self._known) + len(self._new)

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: Mapping[str, Any], **spec: Any
    ) -> bool:
        """Ignore the metric and space of Tune; both are known already."""
        return True

    # Tune annotates no str, and yet its own FINISHED is one.
    def suggest(self, trial_id: str) -> dict[str, Any] | str:  # type: ignore[override]
        """The spec of the next trial."""
        if self._is_over() or not self.n_left:
            return Searcher.FINISHED
        if self._known:
            number = min(self._known)
            parameters = self._proposer.propose(number, self._known.pop(number))
        else:
            number = self._new.pop(0)
            parameters = self._proposer.propose(number)
        return self._begin(number, parameters)

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """Do nothing: the trial recorder adds outcomes, in the order of the trial table."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: a sweep resumes from the trial table, never from Ray's state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing, as nothing is saved."""


def _suggest(trial: optuna.trial.Trial, key: str, domain: Domain) -> Any:
    if domain.choice is not None:
        return json.loads(trial.suggest_categorical(key, list(map(json.dumps, domain.choice))))
    if domain.integer:
        return trial.suggest_int(key, *domain.integer)
    low, high = domain.extremes
    return trial.suggest_float(key, low, high, log=domain.log_uniform is not None)


def _distribution(domain: Domain) -> BaseDistribution:
    if domain.choice is not None:
        return CategoricalDistribution(list(map(json.dumps, domain.choice)))
    if domain.integer:
        return IntDistribution(*domain.integer)
    low, high = domain.extremes
    return FloatDistribution(low, high, log=domain.log_uniform is not None)
