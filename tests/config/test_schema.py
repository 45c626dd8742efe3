"""Signatures are read as Python would call them, and values fit annotations exactly."""

import collections.abc
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Optional, Protocol, TypedDict, Union

import pytest

from bts_lightning.config.schema import (
    REQUIRED,
    Argument,
    MisfitError,
    Node,
    describe,
    fit,
    options,
    signature,
)

if TYPE_CHECKING:
    from decimal import Decimal


class Colour(Enum):
    RED = "red"


class Extent(TypedDict):
    x: int


class Named(Protocol):
    name: str


class Thing:
    def __call__(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (1, int, 1),
        (1, float, 1.0),
        (True, bool, True),
        ("a", str, "a"),
        ("a", Path, Path("a")),
        ("a", str | Path, "a"),
        ("a", Path | None, Path("a")),
        (None, Optional[int], None),  # noqa: UP045
        (None, Any, None),
        (1, float | int, 1),
        (1, Union[float, int], 1),  # noqa: UP007
        (1.5, int | float, 1.5),
        ("a", Literal["a", "b"], "a"),
        (16, Literal["16", "32"], "16"),
        (16, Literal["16", 16], "16"),
        (None, Literal["a", None], None),
        ([1, 2], list[int], [1, 2]),
        ([1, 2], tuple[int, ...], (1, 2)),
        ([1, "a"], tuple[int, str], (1, "a")),
        ([1], Sequence[float], [1.0]),
        ([1], collections.abc.Iterable[int], [1]),
        ([1, 1], set[int], {1}),
        ([1], list, [1]),
        ({"a": 1}, dict[str, float], {"a": 1.0}),
        ({"a": 1}, Mapping[Literal["a"], int], {"a": 1}),
        ({"x": 1}, Extent, {"x": 1}),
        ("red", Colour, Colour.RED),
        ("anything", object, "anything"),
        ("unchecked", Named, "unchecked"),
        ("unchecked", REQUIRED, "unchecked"),
    ],
)
def test_a_value_fits(value, annotation, expected):
    fitted = fit(value, annotation)
    assert fitted == expected
    assert type(fitted) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (True, int),
        (True, float),
        (1, bool),
        (1.0, int),
        ("1", int),
        (1, str),
        (1, Path),
        (None, int),
        (None, list[int]),
        ("abc", Sequence[str]),
        ("abc", list[str]),
        ([1, 2, 3], tuple[int, int]),
        ([1.5], list[int]),
        ({"a": "b"}, dict[str, int]),
        ({"b": 1}, dict[Literal["a"], int]),
        ("c", Literal["a", "b"]),
        (1, Literal[True]),
        ("blue", Colour),
        ({}, Thing),
        ("text", Callable[[], int]),
        (True, int | float),
    ],
)
def test_a_value_does_not_fit(value, annotation):
    with pytest.raises(MisfitError):
        fit(value, annotation)


def checked(cls: type, *, is_partial: bool = False) -> Node:
    return Node("key", cls, {}, is_partial)


@pytest.mark.parametrize(
    ("node", "annotation"),
    [
        (checked(Thing), Thing),
        (checked(Thing), Thing | None),
        (checked(bool), int),
        (checked(Thing), Any),
        (checked(Thing), Named),
        (checked(Thing), Callable[[], int]),
        (checked(Thing, is_partial=True), Callable[[], Thing]),
        (checked(Thing, is_partial=True), Callable[..., Any]),
    ],
)
def test_a_node_fits(node, annotation):
    assert fit(node, annotation) is node


@pytest.mark.parametrize(
    ("node", "annotation"),
    [
        (checked(Thing), int),
        (checked(Thing), Literal["a"]),
        (checked(Thing), None),
        (checked(Thing, is_partial=True), Thing),
        (checked(Thing, is_partial=True), Callable[[], int]),
        (checked(Colour), Callable[[], int]),
    ],
)
def test_a_node_does_not_fit(node, annotation):
    with pytest.raises(MisfitError):
        fit(node, annotation)


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (int | None, "int | None"),
        (tuple[int, ...], "tuple[int, ...]"),
        (Literal["a", 1] | None, "a | 1 | None"),
        (Callable[[int], Thing], "factory of Thing"),
        (dict[str, float], "dict[str, float]"),
        (Any, "anything"),
    ],
)
def test_an_annotation_is_described_as_it_would_be_written(annotation, text):
    assert describe(annotation) == text


def test_options_are_found_inside_a_union():
    assert options(Literal["a", "b"] | int | None) == ["a", "b"]


class Base:
    def __init__(self, name: str, size: int = 1) -> None:
        self.name, self.size = name, size


class Hands(Base):
    def __init__(self, width: float, **others: Any) -> None:
        super().__init__("fixed", **others)
        self.width = width


class Keeps(Base):
    def __init__(self, width: float, **others: Any) -> None:
        super().__init__("fixed")
        self.others = others


class Silent(Hands):
    pass


class Lost:
    def __init__(self, amount: "Decimal", width: "int" = 1, depth: int = None) -> None:  # type: ignore[assignment] # noqa: RUF013
        self.amount = amount


def test_keywords_are_followed_to_the_base_that_receives_them():
    takes = signature(Silent)
    assert list(takes.arguments) == ["width", "name", "size"]
    assert takes.arguments["width"] == Argument(float, REQUIRED)
    assert takes.arguments["name"].default is None, "the derived class may fill it"
    assert not takes.is_open


def test_keywords_that_a_class_keeps_leave_it_open():
    takes = signature(Keeps)
    assert list(takes.arguments) == ["width"]
    assert takes.is_open


def test_a_name_for_type_checkers_leaves_only_its_argument_unchecked():
    takes = signature(Lost).arguments
    assert takes["amount"].annotation is Any
    assert takes["width"].annotation is int


def test_a_default_of_none_makes_none_an_accepted_value():
    assert fit(None, signature(Lost).arguments["depth"].annotation) is None


def test_a_class_without_a_constructor_takes_nothing():
    assert signature(Thing).arguments == {}
    assert not signature(Thing).is_open
