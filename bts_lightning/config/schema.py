"""Read a constructor's signature as a schema, and fit values from YAML to its annotations."""

import ast
import collections.abc
import functools
import inspect
import sys
import textwrap
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Optional, TypeVar, Union

from bts_lightning.config.source import handed

REQUIRED = inspect.Parameter.empty

Value = TypeVar("Value")

_LISTS = (list, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


@dataclass(frozen=True)
class Argument:
    """One argument of a constructor; `default` is REQUIRED where it has none."""

    annotation: Any
    default: Any


@dataclass(frozen=True)
class Signature:
    """What a constructor takes; `is_open` if it hands other keywords on to where we cannot see."""

    arguments: dict[str, Argument]
    is_open: bool


@dataclass(frozen=True, repr=False)
class Node:
    """A checked node: a class with fitted arguments, for an object or (`is_partial`) a factory."""

    key: str
    cls: type
    arguments: dict[str, Any]
    is_partial: bool

    def __repr__(self) -> str:
        return f"{'factory of ' if self.is_partial else ''}{self.cls.__name__}"


class MisfitError(Exception):
    """A value does not fit an annotation."""


@functools.cache
def signature(cls: type) -> Signature:
    """List what a constructor takes, following `**kwargs` to the bases that receive them."""
    arguments: dict[str, Argument] = {}
    calls: list[ast.Call] = []
    filled: set[str] = set()
    for owner in cls.__mro__[:-1]:
        function = vars(owner).get("__init__")
        if function is None:
            continue
        _, *parameters = inspect.signature(function).parameters.values()
        names = [parameter.name for parameter in parameters]
        filled = filled.union(*(_filled(call, names) for call in calls))
        for parameter in parameters:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            default = parameter.default
            if parameter.name in filled and default is REQUIRED:
                default = None  # the derived constructor fills it in itself
            hint = _hint(parameter.annotation, owner, function)
            if default is None:
                hint = Optional[hint]  # noqa: UP045 (a string cannot take `|`)
            arguments.setdefault(parameter.name, Argument(hint, default))
        rest = [one.name for one in parameters if one.kind is one.VAR_KEYWORD]
        calls = _handed_to_base(function, rest[0]) if rest else []
        if not calls:
            return Signature(arguments, is_open=bool(rest))
    return Signature(arguments, is_open=bool(calls))


def fit(value: Any, annotation: Any) -> Any:
    """Give the value as the annotation wants it (Path, float, tuple), or raise MisfitError."""
    if annotation is None:
        annotation = type(None)
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return _fit_union(value, inner)
    if origin is Literal:
        return _fit_literal(value, inner)
    if isinstance(value, Node):
        return _fit_node(value, annotation)
    kind = origin or annotation
    if not _is_checkable(kind):
        return value
    if kind is float and type(value) in (int, float):
        return float(value)
    if kind in (bool, int, str, float):
        return _require(type(value) is kind, value)
    if kind is Path:
        return Path(_require(isinstance(value, str | Path), value))
    if kind in (tuple, set, frozenset, *_LISTS):
        return _fit_list(_require(isinstance(value, list), value), kind, inner)
    if kind in _MAPPINGS or typing.is_typeddict(kind):
        to_key, to_value = inner or (Any, Any)
        items = _require(isinstance(value, dict), value).items()
        return {fit(name, to_key): fit(item, to_value) for name, item in items}
    if issubclass(kind, Enum):
        return kind(_require(value in [one.value for one in kind], value))
    return _require(isinstance(value, kind), value)


def is_untyped(annotation: Any) -> bool:
    """Say whether an annotation or a part of it lets anything pass; what a factory gives may."""
    if typing.get_origin(annotation) in (collections.abc.Callable, functools.partial):
        return False
    inner = typing.get_args(annotation)
    if typing.get_origin(annotation) is Literal or not inner:
        return annotation in (Any, REQUIRED, object)
    return any(is_untyped(one) for one in inner)


def nodes_in(value: Any) -> Iterator[Node]:
    """Yield the nodes that stand in a value."""
    if isinstance(value, Node):
        yield value
    elif isinstance(value, dict | list | tuple | set | frozenset):
        for item in value.values() if isinstance(value, dict) else value:
            yield from nodes_in(item)


def describe(annotation: Any) -> str:
    """Write an annotation as short as it can be understood."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is REQUIRED or annotation is Any:
        return "anything"
    if origin in (Union, types.UnionType, Literal):
        return " | ".join(dict.fromkeys(_alternatives(annotation)))
    if origin is collections.abc.Callable:
        return f"factory of {describe(inner[-1])}" if inner else "factory"
    if annotation is None or annotation is type(None):
        return "None"
    if annotation is ...:
        return "..."
    name = getattr(origin or annotation, "__name__", str(annotation))
    return f"{name}[{', '.join(describe(one) for one in inner)}]" if inner else name


def _alternatives(annotation: Any) -> list[str]:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return [str(one) for one in inner]
    if origin in (Union, types.UnionType):
        return [text for one in inner for text in _alternatives(one)]
    return [describe(annotation)]


def options(annotation: Any) -> list[str]:
    """List the words that an annotation offers, also inside a union."""
    if typing.get_origin(annotation) is Literal:
        return [one for one in typing.get_args(annotation) if isinstance(one, str)]
    return [word for one in typing.get_args(annotation) for word in options(one)]


def _hint(annotation: Any, owner: type, function: Any) -> Any:
    """Resolve one annotation alone: a name for type checkers only leaves no more unchecked."""
    names = {
        **vars(sys.modules[owner.__module__]),
        **getattr(inspect.unwrap(function), "__globals__", {}),
    }
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    try:
        return typing.get_type_hints(holder, globalns=names)["it"]
    except (NameError, TypeError, AttributeError, SyntaxError):
        return Any


def _handed_to_base(function: Any, keywords: str) -> list[ast.Call]:
    """List the calls that give a constructor's `**kwargs` to the next one, rather than use them."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    except (OSError, TypeError, SyntaxError):
        return []
    return handed(tree, keywords)


def _filled(call: ast.Call, names: Sequence[str]) -> set[str]:
    """Name what such a call gives the base besides: all of it, where a list is unpacked."""
    if any(isinstance(one, ast.Starred) for one in call.args):
        return set(names)
    return {*names[: len(call.args)], *(one.arg for one in call.keywords if one.arg)}


def _require(holds: bool, value: Value) -> Value:
    if not holds:
        raise MisfitError
    return value


def _fit_union(value: Any, members: tuple[Any, ...]) -> Any:
    # The very type first: in `float | int` a 1 stays an int (for Lightning one batch, not all).
    for member in sorted(members, key=lambda member: type(value) is not member):
        try:
            return fit(value, member)
        except MisfitError:
            continue
    raise MisfitError


def _fit_literal(value: Any, members: tuple[Any, ...]) -> Any:
    for member in members:
        # YAML reads a bare 16 as a number where the option is the word "16".
        same_text = isinstance(member, str) and type(value) is int and member == str(value)
        if same_text or (type(member) is type(value) and member == value):
            return member
    raise MisfitError


def _fit_list(value: list[Any], kind: type, inner: tuple[Any, ...]) -> Any:
    if kind is tuple and inner and inner[-1] is not ...:
        _require(len(value) == len(inner), value)
        return tuple(fit(item, one) for item, one in zip(value, inner, strict=True))
    items = [fit(item, inner[0] if inner else Any) for item in value]
    return kind(items) if kind in (tuple, set, frozenset) else items


def _fit_node(node: Node, annotation: Any) -> Node:
    kind = typing.get_origin(annotation) or annotation
    inner = typing.get_args(annotation)
    if kind in (collections.abc.Callable, functools.partial):
        result = inner[-1] if inner else Any
        if node.is_partial:
            fits = not _is_checkable(result) or issubclass(node.cls, result)
        else:
            fits = kind is not functools.partial and any(
                "__call__" in vars(base) for base in node.cls.__mro__
            )
        return _require(fits, node)
    if not _is_checkable(kind):
        return node
    return _require(not node.is_partial and issubclass(node.cls, kind), node)


def _is_checkable(kind: Any) -> bool:
    """Say whether `isinstance` can judge; protocols, type variables and `object` take anything."""
    if not isinstance(kind, type) or kind in (REQUIRED, object, Any):
        return False
    return typing.is_typeddict(kind) or not getattr(kind, "_is_protocol", False)
