"""All settings of a run: YAML, checked wholly before anything starts; the only door to yaml.

The file states the science in global quantities; the launcher states the machine. Nothing here is
ever changed after loading: what follows from a setting is a function of it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import ConfigError

_CREDENTIALS = re.compile(r"://[^/\s]*@|[?&](x-amz-\w+|sig|signature|token)=", re.IGNORECASE)


class Section(BaseModel):
    """A frozen group of settings that refuses what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Fraction = Annotated[float, Field(ge=0, lt=1)]


class CacheConfig(Section):
    """Where bytes of object storage are kept on each node; local data needs no cache."""

    folder: str = "~/.cache/tppt-shards"  # shared by the node's ranks and loader workers
    limit_gb: float = Field(50.0, gt=0)  # of 1e9 bytes, per node; the least recently used leaves
    deadline_s: float = Field(300.0, gt=0)  # how long faults of the storage are borne, per fetch


class DataConfig(Section):
    """What is read and in which portions."""

    index: str | list[str]  # folder of prepared shards; of a list, each brings further classes
    global_batch: int = Field(128, gt=0)  # images per optimizer step, all ranks together
    eval_batch: int = Field(64, gt=0)  # images per forward pass of a test, dealt to ranks whole
    workers: int = Field(2, ge=0)  # loader processes per rank; 0 decodes in the rank itself
    train_transform: Literal["clip", "squash", "random_crop"] = "clip"
    eval_transform: Literal["clip", "squash"] = "clip"
    tail: Literal["drop", "wrap"] = "wrap"  # what becomes of an epoch's last, partial batch
    validation_fraction: float = Field(0.0, ge=0, lt=1)  # of training images, by hash of the key
    on_bad_sample: Literal["fail", "skip"] = "fail"
    feature_cache: str | None = None  # folder or URL for frozen features that runs may share
    bad_sample_budget: int = Field(0, ge=0)  # bad samples tolerated per run if they are skipped
    cache: CacheConfig = CacheConfig()


class TasksConfig(Section):
    """How classes become tasks."""

    class_order: Literal["natural", "lamda"] | list[int] = "natural"
    order_seed: int = Field(1993, ge=0, lt=2**32)  # of the 'lamda' rule only
    initial_classes: int = Field(0, ge=0)  # classes of the first task; 0 = classes_per_task
    classes_per_task: int = Field(gt=0)
    limit: int | None = Field(None, gt=0)  # learn only the first tasks, as a search does


class ModelConfig(Section):
    """Which frozen CLIP."""

    arch: str  # an open_clip name, or local-dir:FOLDER
    weights: str | None = None  # pretrained tag, file, 'random'; None for local-dir:


class TextConfig(Section):
    """How a class name becomes a prompt."""

    names: Literal["spaced", "raw"] = "spaced"  # 'great white shark' or 'great_white_shark'
    templates: list[str] = Field(["a photo of a {}."], min_length=1)  # training uses the first
    ensemble: bool = False  # fixed anchors at test: mean over all templates


class MethodConfig(Section):
    """Which continual-learning method; the options are checked by the methods themselves."""

    name: str
    options: dict[str, dict[str, Any]] = {}  # by method name, so that one file can compare several


class OptimConfig(Section):
    """How the learned tensors are updated, anew in each task."""

    learning_rate: float = Field(1e-3, gt=0)  # peak, for the global batch
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    epsilon: float = Field(1e-8, gt=0)  # of Adam's denominator
    weight_decay: float = Field(0.0, ge=0)
    epochs: int = Field(10, gt=0)  # passes over a task's images
    warmup_steps: int = Field(0, ge=0)  # linear, per task
    schedule: Literal["cosine", "constant"] = "cosine"
    gradient_clipping: float = Field(1.0, ge=0)  # norm over all learned tensors; 0 = never
    on_nonfinite_loss: Literal["fail", "skip"] = "fail"
    nonfinite_loss_budget: int = Field(0, ge=0)  # steps tolerated per run if they are skipped


class EngineConfig(Section):
    """How the work is spread over ranks."""

    zero_stage: Literal[0, 1] = 0  # the learned tensors are small: more stages only cost
    # Images per forward pass of a rank; the loss stays global. While a rank has a multiple of it,
    # 1, 2, 4, … ranks learn the same bits.
    micro_batch: int = Field(16, gt=0)
    recompute: bool = False  # each pass twice, in the memory of one: two fifths more time
    timeout_s: float = Field(600.0, gt=0)  # a collective that takes longer ends the run


class SnapshotConfig(Section):
    """How much work may be lost when a machine goes away."""

    every_steps: int = Field(100, gt=0)  # optimizer steps of a task between two snapshots
    folder: str | None = None  # folder or URL; None: `snapshots` in the output


class EvaluationConfig(Section):
    """What is tested after each task."""

    split: Literal["test", "validation"] = "test"
    exclude_tasks: int = Field(0, ge=0)  # first tasks that chose the settings: in no summary figure


Protocol = Literal["first_task", "first_k_tasks", "transfer", "oracle_sequence"]
TUNED_ON_EVALUATION = "tuned on the evaluation sequence"


class TuningConfig(Section):
    """How a sweep has found the settings; it changes nothing and is shown wherever the run is."""

    protocol: Protocol
    sweep: str  # the sweep's output
    trials: int | None = Field(None, gt=0)  # configurations tried; None while there may be more
    device_hours: float | None = Field(None, ge=0)  # spent on all of them
    note: str | None = None  # what a reader of any figure must know

    @model_validator(mode="after")
    def _check_the_oracle_is_told(self) -> TuningConfig:
        is_told = TUNED_ON_EVALUATION in (self.note or "")
        if self.protocol == "oracle_sequence" and not is_told:
            raise ValueError(
                f"tuning.note is {self.note!r} and tuning.protocol is 'oracle_sequence'; the note "
                f"must say {TUNED_ON_EVALUATION!r}"
            )
        return self

    @property
    def summary(self) -> str:
        """The whole of it in a line."""
        spent = [f"{self.trials} trials"] if self.trials else []
        spent += [] if self.device_hours is None else [f"{self.device_hours:.3g} device-hours"]
        line = ", ".join([f"tuned by protocol {self.protocol}", *spent, f"sweep {self.sweep}"])
        return f"{line}: {self.note}" if self.note else line


class Config(Section):
    """One run."""

    name: str = "run"
    output: str = Field("runs/run", min_length=1)  # folder or URL
    seed: int = Field(1, ge=0, lt=2**63)  # initialisation, order of samples, augmentation
    data: DataConfig
    tasks: TasksConfig
    model: ModelConfig
    text: TextConfig = TextConfig()
    method: MethodConfig
    optim: OptimConfig = OptimConfig()
    engine: EngineConfig = EngineConfig()
    snapshot: SnapshotConfig = SnapshotConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tuning: TuningConfig | None = None  # written by a sweep, not by hand
    log_every: int = Field(10, gt=0)  # optimizer steps between two lines of metrics.jsonl

    @model_validator(mode="after")
    def _check_sections_together(self) -> Config:
        if self.evaluation.split == "validation" and not self.data.validation_fraction:
            raise ValueError(
                "evaluation.split is 'validation' and data.validation_fraction is 0; "
                "set it to e.g. 0.2"
            )
        for template in self.text.templates:
            if template.count("{}") != 1:
                raise ValueError(f"text.templates: {template!r} needs exactly one '{{}}'")
        return self


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration in ``path``, its bases first, then ``key.sub=value`` overrides.

    Raises:
        ConfigError: a file is missing or no YAML, a key unknown, a value of the wrong kind.
    """
    return load_section(Config, path, overrides)


SectionT = typing.TypeVar("SectionT", bound=Section)


def load_section(kind: type[SectionT], path: str | Path, overrides: Sequence[str] = ()) -> SectionT:
    """The settings of ``kind`` in a YAML file, its bases first, then the overrides.

    Raises:
        ConfigError: as :func:`load_config`.
    """
    tree = _read_tree(Path(path), seen=())
    for override in overrides:
        _apply_override(tree, override)
    return parse_section(kind, tree, place=str(path))


def parse_section(kind: type[SectionT], tree: Mapping[str, Any], *, place: str) -> SectionT:
    """``tree`` as a checked ``kind``; ``place`` opens every error message.

    Raises:
        ConfigError: naming the first faulty key, what was found and what is wanted.
    """
    _refuse_credentials(tree, place)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{place}: {_explain(kind, error)}") from None


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML that :func:`load_config` reads back to the same value."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=100)


def decisive_settings(config: Config) -> dict[str, Any]:
    """What decides the result, besides the tasks and their data.

    Not where the result goes, how the machine is used, options of other methods, or what is said
    of the result: which tasks its summary leaves out, and how the settings were found.
    """
    machine = {"index", "workers", "eval_batch", "feature_cache", "cache"}
    aside: dict[str, Any] = {"data": machine, "evaluation": {"exclude_tasks"}}
    for name in ("output", "name", "log_every", "engine", "snapshot", "tasks", "tuning"):
        aside[name] = True
    settings = config.model_dump(mode="json", exclude=aside)
    method = settings["method"]
    method["options"] = {k: v for k, v in method["options"].items() if k == method["name"]}
    return settings


def config_hash(config: Config) -> str:
    """SHA-256 of what decides the figures, the tasks that are learned and reported included."""
    content = {
        **decisive_settings(config),
        "tasks": config.tasks.model_dump(mode="json"),
        "exclude_tasks": config.evaluation.exclude_tasks,
        "index": config.data.index,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_tree(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise ConfigError(f"{path}: `base` leads back to this file; remove the circle")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text: {error}") from None
    except yaml.YAMLError as error:
        what = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
        raise ConfigError(f"{path}: not valid YAML: {what}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must hold `key: value` lines, found {type(tree).__name__}")
    bases = tree.pop("base", [])
    bases = bases if isinstance(bases, list) else [bases]
    if not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: `base` must name a file or a list of files, found {bases!r}")
    merged: dict[str, Any] = {}
    for base in bases:
        merged = _merge(merged, _read_tree(path.parent / base, (*seen, path.resolve())))
    return _merge(merged, tree)


def _refuse_credentials(value: Any, place: str, key: str = "") -> None:
    """A file of settings is copied into results and logs, where no secret may be."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _refuse_credentials(inner, place, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for inner in value:
            _refuse_credentials(inner, place, key)
    elif isinstance(value, str) and _CREDENTIALS.search(value):
        raise ConfigError(
            f"{place}: {key}: holds credentials; leave them out of the URL and set AWS_PROFILE, or "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, in the environment"
        )


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key written twice: the first of two sections would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"{twice[0]!r} is written twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """``above`` laid over ``below``, section by section."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _apply_override(tree: dict[str, Any], override: str) -> None:
    dotted, separator, text = override.partition("=")
    if not separator or not dotted:
        raise ConfigError(f"override {override!r}: write key=value, for instance seed=2")
    *path, last = dotted.split(".")
    node = tree
    for key in path:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise ConfigError(f"override {override!r}: {key!r} holds a value, not a section")
    try:
        node[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: {text!r} is not a YAML value") from None


def _explain(kind: type[Section], error: ValidationError) -> str:
    errors = error.errors()
    path = _path_of(errors[0])
    within = (each for each in errors if path == _path_of(each)[: len(path)])
    first = max(within, key=lambda each: len(_path_of(each)))  # the innermost tells the most
    path = _path_of(first)
    place = ".".join(path) or "configuration"
    if first["type"] == "extra_forbidden":
        known = _fields_at(kind, path[:-1])
        close = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
        return f"{place} is not a known key; {hint}"
    if first["type"] == "missing":
        return f"{place} is missing; it must be given"
    if first["type"] == "value_error":
        return f"{first['ctx']['error']}"
    if first["type"] in ("model_type", "dict_type"):
        return f"{place}: must hold `key: value` lines, found {first['input']!r}"
    # of a setting that may be of several kinds, each kind has its own complaint
    complaints = [each["msg"] for each in errors if _path_of(each) == path]
    wanted = ", or ".join(text[0].lower() + text[1:] for text in dict.fromkeys(complaints))
    return f"{place}: {wanted}, found {first['input']!r}"


def _path_of(error: Any) -> list[str]:
    """The keys that lead to the fault; pydantic adds the kinds it tried, as in ``list[int]``."""
    return [str(part) for part in error["loc"] if "[" not in str(part)]


def _fields_at(kind: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Names of the fields of the section that ``path`` leads to."""
    for key in path:
        field = kind.model_fields.get(key)
        inner = _section_of(field.annotation) if field else None
        if inner is None:
            return list(kind.model_fields)
        kind = inner
    return list(kind.model_fields)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return next(filter(None, map(_section_of, typing.get_args(annotation))), None)
    return None
