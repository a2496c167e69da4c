"""The learned tensors of each task, and a method restored from them after any task.

``<output>/tasks/task-000.safetensors`` holds the tensors that the first task added or changed.
Merged in order, the files are the complete method without the backbone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load as from_safetensors
from torch import Tensor

from pipeline import storage
from pipeline.config import Config, ModelConfig
from pipeline.errors import ConfigError, DataError, WeightsError
from pipeline.methods import build_method
from pipeline.methods.base import Method, MethodContext
from pipeline.model.weights import load_clip, weights_problem
from pipeline.output.results import CONFIG_NAME, RunResults, read_results
from pipeline.rng import seed_torch
from pipeline.settings_file import parse_section
from pipeline.tasks import Task
from pipeline.yaml_text import parse_yaml

_LOCAL = "local-dir:"  # before the folder of a model


@dataclass(frozen=True)
class LearnedRun:
    """A run as it was after the last of ``tasks``."""

    method: Method
    tasks: tuple[Task, ...]
    config: Config  # with the backbone as it was found


def load_method(
    output: str, stage: int | None = None, *, device: torch.device | None = None
) -> Method:
    """The method of :func:`load_run`.

    Call ``method.logits(method.encode(image_BCHW, features))`` for scores over the classes.
    """
    return load_run(output, stage, device=device).method


def load_run(
    output: str,
    stage: int | None = None,
    *,
    device: torch.device | None = None,
    weights: str | None = None,
) -> LearnedRun:
    """A run as it was after ``stage`` tasks (1, 2, …), or after the last one.

    ``output`` is the folder or URL of the run; the training data are not needed. ``weights`` is the
    present file or folder of the backbone's weights, if they have moved.

    Raises:
        ConfigError: the run has not learned so many tasks.
        DataError: the output holds no run, a file was changed after the run wrote it, or the
            weights are not those of the run.
        WeightsError: the backbone cannot be loaded.
        StorageError: a file cannot be read.
    """
    place = storage.redact(output)
    results = read_results(output)
    if results is None:
        raise DataError(f"{place}: holds no results.json; give a run's output")
    stage = results.n_learned if stage is None else stage
    if not 1 <= stage <= results.n_learned:
        raise ConfigError(
            f"{place}: has learned {results.n_learned} tasks, and stage {stage} "
            f"was asked for; choose 1 to {results.n_learned}"
        )
    config, tasks = _config_of(results, place), tuple(run_tasks(results)[:stage])
    n_lists = len(config.text.template_lists)
    if any(task.group >= n_lists > 1 for task in tasks):
        raise DataError(
            f"{place}: results.json: groups has tasks of more than the {n_lists} indexes with "
            "templates; restore it from a copy"
        )
    model = _find_weights(output, config.model, weights)
    on = torch.device("cpu") if device is None else device
    clip = load_clip(model.arch, model.weights, device=on, precision=model.precision)
    if clip.sha256 != results.manifest.backbone_sha256:
        raise DataError(
            f"{place}: was learned on a backbone with other weights than "
            f"{clip.name}; give the weights of the run"
        )
    method = build_method(config.method, MethodContext.of(config, clip))
    learned = (_learned_of(results, output, task.index) for task in tasks)
    restore_method(method, tasks, learned, seed=config.seed)
    return LearnedRun(method.eval(), tasks, config.model_copy(update={"model": model}))


def _config_of(results: RunResults, place: str) -> Config:
    """The settings of a run, without the cache of the machine that trained.

    Its path may name a variable that is not set on this machine.
    """
    settings = dict(results.manifest.config)
    data = settings.get("data")
    if isinstance(data, Mapping):
        settings["data"] = {key: value for key, value in data.items() if key != "cache"}
    return parse_section(Config, settings, place=f"{place}: manifest.config")


def _find_weights(output: str, model: ModelConfig, weights: str | None) -> ModelConfig:
    """The backbone of a run with paths that exist here.

    Results have the paths as they were given, config.yaml has them absolute.

    Raises:
        WeightsError: the backbone is not on this machine, and open_clip does not know it.
    """
    if weights is not None:
        return moved_weights(model, weights)
    candidates = [model]
    url = storage.join(output, CONFIG_NAME)
    if storage.exists(url):
        place = storage.redact(url)
        tree = parse_yaml(storage.read_text(url), place=place)
        section = tree.get("model") if isinstance(tree, dict) else None
        candidates.insert(0, parse_section(ModelConfig, section or {}, place=f"{place}: model"))
    problems = [weights_problem(each.arch, each.weights) for each in candidates]
    if None in problems:
        return candidates[problems.index(None)]
    raise WeightsError(
        f"{problems[0]}; if the weights of the run have moved, give their present path (weights= "
        "of load_classifier, --weights of a command)"
    )


def moved_weights(model: ModelConfig, weights: str) -> ModelConfig:
    """The same backbone with its weights at their present path, a file or a folder of open_clip.

    Raises:
        WeightsError: there are no weights of this model.
    """
    is_folder = model.arch.startswith(_LOCAL) or Path(weights).is_dir()
    change = {"arch": f"{_LOCAL}{weights}", "weights": None}
    moved = model.model_copy(update=change if is_folder else {"weights": weights})
    problem = weights_problem(moved.arch, moved.weights)
    if problem:
        raise WeightsError(problem)
    return moved


def run_tasks(results: RunResults) -> list[Task]:
    """The tasks of a run, from its results."""
    tasks, first = [], 0
    number_of: dict[str, int] = {}
    known = results.known_classes or [[] for _ in results.tasks]
    groups = results.groups or [0] * len(results.tasks)
    for index, names in enumerate(results.tasks):
        labels = results.manifest.class_order[first : first + len(names)]
        numbers = tuple(number_of[name] for name in known[index])
        tasks.append(Task(index, first, tuple(labels), tuple(names), numbers, groups[index]))
        number_of |= {name: first + place for place, name in enumerate(names)}
        first += len(names)
    return tasks


def restore_method(
    method: Method, tasks: Sequence[Task], learned: Iterable[Mapping[str, Tensor]], *, seed: int
) -> None:
    """Restore ``method`` to its state after ``tasks``, from the learned tensors of each task.

    Raises:
        DataError: the method has no tensor of one of the names.
    """
    for task, tensors in zip(tasks, learned, strict=False):
        seed_torch("task", seed, task.index)
        method.restore_task(task, tensors)


def _learned_of(results: RunResults, output: str, task: int) -> dict[str, Tensor]:
    if results.learned_sha256 is not None:
        if task >= len(results.learned_sha256):
            raise DataError(
                f"{storage.redact(output)}: results.json has no hash for task {task + 1} in "
                "learned_sha256; restore it from a copy"
            )
        sha256 = results.learned_sha256[task]
        return {} if sha256 is None else read_learned(output, task, sha256)
    # An older version of the program did not record the hashes.
    exists = storage.exists(learned_url(output, task))
    return read_learned(output, task, None) if exists else {}


def learned_url(output: str, task: int) -> str:
    """The file of the learned tensors of a task."""
    return storage.join(output, "tasks", f"task-{task:03d}.safetensors")


def read_learned(output: str, task: int, sha256: str | None) -> dict[str, Tensor]:
    """The tensors of one task; ``sha256`` is the expected hash, None if it is not known.

    Raises:
        DataError: the file was changed after the run wrote it.
        StorageError: the file cannot be read.
    """
    url = learned_url(output, task)
    data = storage.read_bytes(url, most=storage.MAX_TENSOR_BYTES)
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise DataError(
            f"{storage.redact(url)}: is not the file that the run wrote; restore it from a copy, "
            "or remove the output to start again"
        )
    return parse_tensors(data, url, remedy="restore it from a copy")


def parse_tensors(data: bytes, url: str, *, remedy: str) -> dict[str, Tensor]:
    """The tensors in ``data``, a safetensors file at ``url``; an error ends with ``remedy``.

    Raises:
        DataError: another file, or values that are not finite.
    """
    try:
        tensors = from_safetensors(data)
        wrong = next((name for name, value in tensors.items() if not value.isfinite().all()), None)
    except Exception as error:  # of safetensors, or of torch for a type or shape
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(
            f"{storage.redact(url)}: is not a safetensors file ({reason}); {remedy}"
        ) from None
    if wrong is not None:
        raise DataError(
            f"{storage.redact(url)}: {wrong!r} holds values that are not finite, and every learned "
            f"tensor is finite; {remedy}"
        )
    return tensors
