"""Class names that the text tower can tell apart, checked before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.config import Config
from pipeline.data.index import ShardIndex
from pipeline.errors import ConfigError
from pipeline.methods.base import Method, MethodOptions, task_prompts
from pipeline.model.tokens import context_length, token_ids
from pipeline.tasks import Task

_SHOWN = 60  # characters of a name
_REMEDY = (
    "give every class a name of its own with --names of `python -m pipeline.prepare shard`, or "
    "choose text.names=raw or spaced"
)


def check_class_names(
    config: Config,
    index: ShardIndex,
    tasks: Sequence[Task],
    method: type[Method],
    options: MethodOptions,
) -> None:
    """Check that each class of ``tasks`` has a prompt that no other class has.

    With ``tasks.known_classes=apart`` that no other class of its index has.

    Raises:
        ConfigError: a name is empty or is that of two classes, or, for a method that reads names,
            two prompts have equal tokens or a prompt has more tokens than the text tower takes.
    """
    is_apart = config.tasks.known_classes == "apart"
    reads_names = method.build_anchors is not Method.build_anchors
    for group in {task.group for task in tasks} if is_apart else [None]:
        compared = [task for task in tasks if group in (None, task.group)]
        _check_names(index, [pair for task in compared for pair in _classes(task)])
        if reads_names:
            _check_tokens(config, compared, method.context_tokens(options))


def _check_names(index: ShardIndex, classes: Sequence[tuple[int, str]]) -> None:
    """Check the labels and names of some classes against each other."""
    folder_of: dict[str, str] = {}
    for label, name in classes:
        folder = index.class_folders[label]
        if not name.strip():
            raise ConfigError(
                f"data.index: {index.url}: the class in folder {folder!r} has an empty name; "
                f"{_REMEDY}"
            )
        if name in folder_of:
            raise ConfigError(
                f"data.index: {index.url}: the classes in folders {folder_of[name]!r} and "
                f"{folder!r} are both called {_short(name)}; {_REMEDY}"
            )
        folder_of[name] = folder


def _check_tokens(config: Config, tasks: Sequence[Task], n_context: int) -> None:
    arch, limit = config.model.arch, context_length(config.model.arch)
    names = [name for task in tasks for name in task.names]
    prompts = [each for task in tasks for each in task_prompts(config.text, task)]
    n_used = None if config.text.ensemble else 1
    pairs = [(n, p) for n, each in zip(names, prompts, strict=True) for p in each[:n_used]]
    tokens = token_ids(arch, [prompt for _, prompt in pairs])
    _check_length([name for name, _ in pairs], tokens, limit, "its prompt")
    _check_different(names, token_ids(arch, [first for first, *_ in prompts]))
    if n_context:
        bare = [(*ids, *[0] * n_context) for ids in token_ids(arch, [f"{n}." for n in names])]
        _check_length(names, bare, limit, f"with {n_context} learned tokens its prompt")


def _check_length(
    names: Sequence[str], tokens: Sequence[tuple[int, ...]], limit: int, subject: str
) -> None:
    n_tokens, longest = max((len(ids), name) for ids, name in zip(tokens, names, strict=True))
    if n_tokens > limit:
        raise ConfigError(
            f"data.index: class {_short(longest)}: {subject} has {n_tokens} tokens and the text "
            f"tower takes {limit}; shorten the class name, text.templates or the "
            "textual_prompts.length of the method"
        )


def _check_different(names: Sequence[str], tokens: Sequence[tuple[int, ...]]) -> None:
    first: dict[tuple[int, ...], str] = {}
    for name, ids in zip(names, tokens, strict=True):
        if ids in first:
            raise ConfigError(
                f"data.index: classes {_short(first[ids])} and {_short(name)} give the text tower "
                f"the same tokens, so that it cannot tell them apart; {_REMEDY}"
            )
        first[ids] = name


def _classes(task: Task) -> Iterator[tuple[int, str]]:
    return zip(task.labels, task.names, strict=True)


def _short(name: str) -> str:
    return repr(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…")
