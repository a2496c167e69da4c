"""The tensors that a task may change, and a check that no other has changed."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.methods.base import Method
from pipeline.tasks import Task


class TaskChanges:
    """The state of ``method`` before a task; built before ``begin_task`` of that task."""

    def __init__(self, method: Method) -> None:
        self._method = method
        self._before = {name: value.clone() for name, value in method.state_dict().items()}
        self._changeable: set[str] = set()
        self.n_trainable = 0  # scalars that the task trains

    def allow_trained(self) -> None:
        """Accept changes of the tensors that are trained now, and of buffers."""
        self._changeable = self._method.changeable_names()
        trained = (p for p in self._method.parameters() if p.requires_grad)
        self.n_trainable = sum(parameter.numel() for parameter in trained)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that the task has added or may have changed, as they are now."""
        now = self._method.state_dict()
        names = self._changeable | (now.keys() - self._before.keys())
        return {name: value for name, value in now.items() if name in names}

    def check(self, task: Task) -> None:
        """Check that every other tensor is bit-equal to before; ``task`` is named if one is not."""
        now = self._method.state_dict()
        for name, value in self._before.items():
            assert name in self._changeable or torch.equal(value, now[name]), (
                f"task {task.index + 1} changed {name}, which belongs to an earlier task"
            )
