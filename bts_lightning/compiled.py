"""Functions compiled to machine code, and kept on disk where there is a place for it."""

from collections.abc import Callable
from typing import TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Compile a function at its first call; it lets go of the interpreter's lock."""
    try:
        return cast(Function, njit(cache=True, nogil=True)(function))
    except RuntimeError:
        # Neither the package nor a home can be written, as in a container: compile at each start.
        return cast(Function, njit(nogil=True)(function))
