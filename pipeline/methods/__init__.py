"""The methods by name. A new one is one file beside these and one line in ``METHODS``.

Imports the base modules, ``model`` and ``classifiers``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.classifiers import classifier_problem, find_classifiers, parse_classifier
from pipeline.config import MethodConfig
from pipeline.methods.acil import Acil
from pipeline.methods.base import Method, MethodContext, MethodOptions
from pipeline.methods.coda_prompt import CodaPrompt
from pipeline.methods.coop import CoOp
from pipeline.methods.dualprompt import DualPrompt
from pipeline.methods.finetune import Finetune
from pipeline.methods.ivlp import Ivlp
from pipeline.methods.joint import Joint
from pipeline.methods.l2p import L2P
from pipeline.methods.linear_probe import LinearProbe
from pipeline.methods.maple import Maple
from pipeline.methods.ranpac import RanPac
from pipeline.methods.simplecil import SimpleCil
from pipeline.methods.tppt_ridge import TpptRidge
from pipeline.methods.tppt_v import TpptV
from pipeline.methods.tppt_vt import TpptVT
from pipeline.methods.vpt_deep import VptDeep
from pipeline.methods.zeroshot import ZeroShot
from pipeline.plugins import find_class
from pipeline.settings_file import parse_section
from pipeline.tasks import Task

METHODS: dict[str, type[Method]] = {
    "zeroshot": ZeroShot,
    "finetune": Finetune,
    "tppt_v": TpptV,
    "tppt_vt": TpptVT,
    "tppt_ridge": TpptRidge,
    "simplecil": SimpleCil,
    "ranpac": RanPac,
    "acil": Acil,
    "linear_probe": LinearProbe,
    "coop": CoOp,
    "vpt_deep": VptDeep,
    "ivlp": Ivlp,
    "maple": Maple,
    "l2p": L2P,
    "dualprompt": DualPrompt,
    "coda_prompt": CodaPrompt,
    "joint": Joint,
}


def find_method(name: str, *, place: str = "method.name") -> type[Method]:
    """The method called ``name``: one of ``METHODS``, or ``package.module:Class`` of your own.

    Raises:
        ConfigError: there is no such method.
    """
    return find_class(name, METHODS, Method, place=place)


def parse_options(method: MethodConfig) -> MethodOptions:
    """The checked options of the method that a configuration names.

    The options of the other methods are checked too, as one file may compare several.

    Raises:
        ConfigError: no such method, or an option that it does not know or cannot take.
    """
    chosen = _parse(find_method(method.name), method.name, method.options.get(method.name, {}))
    for name, tree in method.options.items():
        _parse(find_method(name, place="method.options"), name, tree)
    return chosen


def resolve_options(method: MethodConfig) -> MethodConfig:
    """The same method with each of its options written out, also those that have their default.

    Raises:
        ConfigError: as :func:`parse_options`.
    """
    options = parse_options(method)
    tree = options.model_dump(mode="json")
    classifier = parse_classifier(options.classifier, place=f"method.options.{method.name}")
    tree["classifier"]["options"] = classifier.model_dump(mode="json")
    return method.model_copy(update={"options": {**method.options, method.name: tree}})


def tasks_problem(method: MethodConfig, tasks: Sequence[Task]) -> str | None:
    """The reason why a method or its classifier cannot learn ``tasks``, with its remedy, or None.

    Raises:
        ConfigError: as :func:`parse_options`.
    """
    options = parse_options(method)
    problem = find_method(method.name).check(options, tasks)
    return problem or classifier_problem(options.classifier, tasks)


def takes_known_classes(method: MethodConfig) -> dict[str, bool]:
    """Whether a task may have images of known classes, by name: of the method, its classifiers.

    Raises:
        ConfigError: as :func:`parse_options`.
    """
    parts = {method.name: find_method(method.name).takes_known_classes}
    for name, classifier in find_classifiers(parse_options(method).classifier):
        parts[name] = classifier.takes_known_classes
    return parts


def build_method(method: MethodConfig, context: MethodContext) -> Method:
    """The method that a configuration names, before its first task.

    Raises:
        ConfigError: as :func:`parse_options`, or the classifier does not fit the method.
    """
    return find_method(method.name)(context, parse_options(method))


def _parse(kind: type[Method], name: str, tree: dict[str, Any]) -> MethodOptions:
    place = f"method.options.{name}"
    options = parse_section(kind.Options, tree, place=place)
    parse_classifier(options.classifier, place=f"{place}.classifier")
    return options
