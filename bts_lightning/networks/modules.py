"""A list of modules whose items keep their type."""

from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar, cast, overload

from torch import nn

M = TypeVar("M", bound=nn.Module)


class Modules(nn.ModuleList, Generic[M]):
    """An `nn.ModuleList` of one kind, of whose items a type checker knows more than `Module`.

    Example:
        >>> nets = Modules(nn.Conv3d(1, width, 3) for width in (4, 8))
        >>> nets[1].out_channels
        8
    """

    def __init__(self, modules: Iterable[M]) -> None:
        super().__init__(modules)

    def __iter__(self) -> Iterator[M]:
        return cast(Iterator[M], super().__iter__())

    @overload
    def __getitem__(self, idx: slice) -> "Modules[M]": ...

    @overload
    def __getitem__(self, idx: int) -> M: ...

    def __getitem__(self, idx: int | slice) -> Any:
        return super().__getitem__(idx)
