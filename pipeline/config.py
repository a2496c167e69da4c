"""All settings of a run, checked before anything starts.

The file states the experiment in global quantities; the launcher states the machine. No setting
changes after loading; a derived value is a function of the settings.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from pipeline.paths import expand_architecture, expand_path
from pipeline.settings_file import Section, dump_section, load_section
from pipeline.storage import is_local
from pipeline.templates import Templates, TextConfig

_LOCAL = "local-dir:"  # before the folder of a model
Fraction = Annotated[float, Field(ge=0, lt=1)]
# A folder, a file or a URL; `~` and `$VARIABLE` stand for their values.
PathText = Annotated[str, AfterValidator(expand_path)]
ArchText = Annotated[str, AfterValidator(expand_architecture)]
# The same, expanded on each machine that uses it.
NodePathText = Annotated[str, AfterValidator(lambda text: text if expand_path(text) else "")]


class CacheConfig(Section):
    """The cache on each node: segments of remote shards, tables of large data sets, pixels."""

    folder: NodePathText = "~/.cache/tppt-shards"  # shared by the node's ranks and loader workers
    limit_gb: float = Field(50.0, gt=0)  # in 1e9 bytes, per node; the least recently used go first
    deadline_s: float = Field(300.0, gt=0)  # seconds of retries per fetch before it fails
    # More room, in 1e9 bytes, for decoded pixels, unless a transform is random; 0: none are kept.
    pixels_gb: float = Field(0.0, ge=0)


class DataConfig(Section):
    """The images and their batches."""

    # Folder or URL of shards; each of a list adds classes. @FILE: a YAML file with such a list.
    index: PathText | list[PathText]
    global_batch: int = Field(128, gt=0)  # images per optimizer step, all ranks together
    eval_batch: int = Field(64, gt=0)  # images per forward pass of a test, on one rank
    workers: int = Field(2, ge=0)  # loader processes per rank; 0: the rank decodes
    # clip: short side resized, centre crop; squash: both sides resized; random_crop: and flipped.
    train_transform: Literal["clip", "squash", "random_crop"] = "clip"
    eval_transform: Literal["clip", "squash"] = "clip"  # of test images
    tail: Literal["drop", "wrap"] = "wrap"  # an epoch's last, partial batch: drop it or fill it up
    validation_fraction: float = Field(0.0, ge=0, lt=1)  # of training images, by hash of the key
    on_bad_sample: Literal["fail", "skip"] = "fail"  # an image that cannot be decoded
    feature_cache: PathText | None = None  # folder or URL of frozen features, shared by runs
    # In 1e9 bytes: kept activations below the first prompted layer, in a local feature_cache.
    activation_limit_gb: float = Field(20.0, ge=0)
    bad_sample_budget: int = Field(0, ge=0)  # bad samples per run that may be skipped
    cache: CacheConfig = CacheConfig()


class TasksConfig(Section):
    """How the classes are divided into tasks."""

    # natural: as in the index; orders of other toolboxes; or a list of class numbers.
    class_order: Literal["natural", "lamda", "mammoth", "icarl"] | list[int] = "natural"
    order_seed: int = Field(1993, ge=0, lt=2**32)  # for 'lamda' and 'mammoth'
    initial_classes: int = Field(0, ge=0)  # classes of the first task; 0: classes_per_task
    # The last task may have fewer. all: each index of data.index is one task.
    classes_per_task: Annotated[int, Field(gt=0)] | Literal["all"]
    limit: int | None = Field(None, gt=0)  # learn only the first tasks, as a sweep does
    # Each further index of data.index: tasks of classes_per_task classes, or one task.
    appended: Literal["split", "one_task"] = "split"
    # Names of earlier classes in a further index: an error; allow: more images of these classes,
    # part of its one task; apart: other classes, as of two benchmarks.
    known_classes: Literal["refuse", "allow", "apart"] = "refuse"

    @model_validator(mode="after")
    def _check_together(self) -> TasksConfig:
        is_split = self.appended != "one_task" and self.classes_per_task != "all"
        if self.classes_per_task == "all" and self.initial_classes:
            raise ValueError(
                f"classes_per_task is 'all' and initial_classes is {self.initial_classes}; the "
                "first task has all classes of its index; remove tasks.initial_classes"
            )
        if self.known_classes == "allow" and is_split:
            raise ValueError(
                f"known_classes is 'allow' and appended is {self.appended!r}; an index with known "
                "classes is one task; set tasks.appended=one_task"
            )
        return self


class ModelConfig(Section):
    """The frozen CLIP."""

    arch: ArchText  # a name of open_clip, or local-dir:FOLDER
    weights: PathText | None = None  # pretrained tag, file or 'random'; None for local-dir:
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of the towers; auto: bf16 on a GPU


class MethodConfig(Section):
    """The continual-learning method; each method checks its own options."""

    name: str  # of a method, or package.module:Class of your own
    options: dict[str, dict[str, Any]] = {}  # by method name: one file serves several methods


class OptimConfig(Section):
    """The optimizer of the trainable tensors; it starts anew in each task."""

    learning_rate: float = Field(1e-3, gt=0)  # peak, for the global batch
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)  # of Adam's moving averages
    epsilon: float = Field(1e-8, gt=0)  # in Adam's denominator
    weight_decay: float = Field(0.0, ge=0)  # of AdamW
    epochs: int = Field(10, gt=0)  # passes over a task's images
    warmup_steps: int = Field(0, ge=0)  # optimizer steps of linear warm-up, per task
    schedule: Literal["cosine", "constant"] = "cosine"  # of the learning rate, per task
    gradient_clipping: float = Field(1.0, ge=0)  # norm over all trainable tensors; 0: no limit
    on_nonfinite_loss: Literal["fail", "skip"] = "fail"  # a step whose loss is not finite
    nonfinite_loss_budget: int = Field(0, ge=0)  # steps per run that may be skipped


class EngineConfig(Section):
    """How the work is divided over ranks."""

    zero_stage: Literal[0, 1] = 0  # the trainable tensors are small: higher stages only cost
    # Images per forward pass of a rank; the loss stays global. If each rank's share of the batch is
    # a multiple of it, 1, 2, 4, … ranks learn the same bits. None: 16 on a CPU; on a GPU the
    # fastest that fits into its memory, measured before the first step.
    micro_batch: int | None = Field(None, gt=0)
    recompute: bool = False  # less memory for two fifths more time: each pass runs twice
    timeout_s: float = Field(600.0, gt=0)  # longest time of a collective; then the run ends


class SnapshotConfig(Section):
    """How much work a lost machine may cost."""

    every_steps: int = Field(100, gt=0)  # steps of a task between two snapshots
    folder: PathText | None = None  # folder or URL; None: `snapshots` in the output


class HeldOutConfig(Section):
    """A data set that is never learned."""

    index: PathText  # folder or URL of its shards
    templates: Templates | None = None  # of its class names; None: text.templates, one list


class EvaluationConfig(Section):
    """The tests after each task."""

    split: Literal["test", "validation"] = "test"  # validation: of data.validation_fraction
    exclude_tasks: int = Field(0, ge=0)  # first tasks, used for tuning: in no summary figure
    predictions: bool = True  # write predictions.jsonl: each image's best classes, after each task
    # The possible answers: all classes seen so far; task: those of the image's own task; all: those
    # of all tasks, also of tasks that are not learned yet.
    label_space: Literal["seen", "task", "all"] = "seen"
    # Also test the tasks that are not learned yet, by the names of their classes.
    future_tasks: bool = False
    # Folders or URLs of data sets that are never learned: zero-shot accuracy on their test images
    # before the first task and after each; not with split=validation.
    held_out: list[PathText | HeldOutConfig] = []

    @model_validator(mode="after")
    def _check_together(self) -> EvaluationConfig:
        if self.future_tasks and self.label_space == "seen":
            raise ValueError(
                "future_tasks is true and label_space is 'seen'; classes of future tasks are not "
                "seen; set evaluation.label_space=task or all"
            )
        urls = [each.index for each in self.held_out_sets]
        if len({*urls}) < len(urls):
            raise ValueError(f"held_out names one data set twice, found {urls}")
        return self

    @property
    def held_out_sets(self) -> list[HeldOutConfig]:
        """The entries of ``held_out``, each as a section."""
        return [HeldOutConfig(index=e) if isinstance(e, str) else e for e in self.held_out]


Protocol = Literal["first_task", "first_k_tasks", "transfer", "oracle_sequence"]
TUNED_ON_EVALUATION = "tuned on the evaluation sequence"


class TuningConfig(Section):
    """How a sweep found the settings; reports show it, and nothing else depends on it."""

    protocol: Protocol  # see docs/SWEEPS.md
    sweep: str  # output of the sweep
    trials: int | None = Field(None, gt=0)  # configurations tried; None until the sweep ends
    device_hours: float | None = Field(None, ge=0)  # of all trials together
    note: str | None = None  # a warning for readers of the figures

    @model_validator(mode="after")
    def _check_oracle_note(self) -> TuningConfig:
        is_noted = TUNED_ON_EVALUATION in (self.note or "")
        if self.protocol == "oracle_sequence" and not is_noted:
            raise ValueError(
                f"tuning.note is {self.note!r} and tuning.protocol is 'oracle_sequence'; the note "
                f"must say {TUNED_ON_EVALUATION!r}"
            )
        return self

    @property
    def summary(self) -> str:
        """All of it in one line."""
        spent = [f"{self.trials} trials"] if self.trials else []
        spent += [] if self.device_hours is None else [f"{self.device_hours:.3g} device-hours"]
        line = ", ".join([f"tuned by protocol {self.protocol}", *spent, f"sweep {self.sweep}"])
        return f"{line}: {self.note}" if self.note else line


class LoggerConfig(Section):
    """A service that gets the figures of a run too, see docs/LOGGERS.md; a name is enough."""

    name: Literal["tensorboard", "wandb", "mlflow"]  # each at most once
    # The project of W&B, or the experiment of MLflow; None: as in that program's own settings.
    project: str | None = None
    # The folder of TensorBoard (None: in the output) or of the local files of W&B (None: in a local
    # output); the tracking URI of MLflow (None: as in MLflow's own settings).
    place: PathText | None = None

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _check_project(self) -> LoggerConfig:
        if self.name == "tensorboard" and self.project is not None:
            raise ValueError("tensorboard has no projects; take project out")
        return self


class Config(Section):
    """One run."""

    name: str = "run"  # in logs and tables
    output: PathText = "runs/run"  # folder or URL
    seed: int = Field(1, ge=0, lt=2**63)  # of initialisation, sample order and augmentation
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
    report: bool = True  # write report.html after each task
    loggers: list[LoggerConfig] = []  # services that get these lines too: [tensorboard, wandb, …]

    @model_validator(mode="after")
    def _check_sections_together(self) -> Config:
        if self.evaluation.split == "validation" and not self.data.validation_fraction:
            raise ValueError(
                "evaluation.split is 'validation' and data.validation_fraction is 0; "
                "set it to e.g. 0.2"
            )
        names = [logger.name for logger in self.loggers]
        if len({*names}) < len(names):
            raise ValueError(f"loggers names one logger twice, found {names}; name each once")
        return self


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The settings of a run in a YAML file; overrides are ``key.sub=value``.

    Raises:
        ConfigError: as :func:`pipeline.settings_file.load_section`.
    """
    return load_section(Config, path, overrides)


def dump_config(config: Config) -> str:
    """The resolved settings as YAML; :func:`load_config` reads the same value from it."""
    return dump_section(config)


def decisive_settings(config: Config) -> dict[str, Any]:
    """The settings that decide the result, without the tasks and their data.

    Left out: the place of the output and what is written there beside the results, the use of the
    machine, options of other methods, tasks that the summary leaves out, and the origin of the
    settings.
    """
    machine = {"index", "workers", "eval_batch", "feature_cache", "activation_limit_gb", "cache"}
    evaluation = {"exclude_tasks", "predictions", "held_out", "future_tasks"}
    aside: dict[str, Any] = {"data": machine, "evaluation": evaluation}
    for name in ("output", "name", "engine", "snapshot", "tasks", "tuning"):
        aside[name] = True
    for name in ("log_every", "report", "loggers"):
        aside[name] = True
    settings = config.model_dump(mode="json", exclude=aside)
    method = settings["method"]
    method["options"] = {k: v for k, v in method["options"].items() if k == method["name"]}
    return settings


def with_absolute_paths(config: Config) -> Config:
    """The same run with local paths that hold in every working folder.

    A path that starts with ``~`` or a variable holds already.
    """
    data, model, snapshot = config.data, config.model, config.snapshot
    held_out = [
        _absolute(each)
        if isinstance(each, str)
        else each.model_copy(update={"index": _absolute(each.index)})
        for each in config.evaluation.held_out
    ]
    index = data.index if isinstance(data.index, list) else [data.index]
    urls = [_absolute(url, marker="@") for url in index]
    cache = data.cache.model_copy(update={"folder": _absolute(data.cache.folder)})
    changes = {
        "index": urls if isinstance(data.index, list) else urls[0],
        "feature_cache": data.feature_cache and _absolute(data.feature_cache),
        "cache": cache,
    }
    arch, weights = model.arch, model.weights
    if arch.startswith(_LOCAL):
        arch = _absolute(arch, marker=_LOCAL)
    elif weights and Path(weights).is_file():
        weights = _absolute(weights)
    folder = snapshot.folder and _absolute(snapshot.folder)
    loggers = [
        each.model_copy(update={"place": each.place and _absolute(each.place)})
        for each in config.loggers
    ]
    return config.model_copy(
        update={
            "output": _absolute(config.output),
            "data": data.model_copy(update=changes),
            "model": model.model_copy(update={"arch": arch, "weights": weights}),
            "snapshot": snapshot.model_copy(update={"folder": folder}),
            "evaluation": config.evaluation.model_copy(update={"held_out": held_out}),
            "loggers": loggers,
        }
    )


def _absolute(url: str, *, marker: str = "") -> str:
    """A relative local path as an absolute one, behind its ``marker`` if it has one."""
    if marker and url.startswith(marker):
        return marker + _absolute(url.removeprefix(marker))
    is_kept = not is_local(url) or "://" in url or url.startswith(("~", "$"))
    return url if is_kept else os.path.abspath(url)
