# SPDX-License-Identifier: Apache-2.0
"""What both asynchronous classes have in common."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Generic, NoReturn, Self, TypeVar

from .. import errors
from .._closing import AsyncClosing
from .._loops import Loop, current
from ..errors import Closed

__all__: list[str] = []

_T = TypeVar("_T")


class Twin(AsyncClosing, Generic[_T]):
    """Something that is there once it is awaited, or entered by `async with`."""

    def __init__(self) -> None:
        self._inside: _T | None = None
        self._began = False
        self._loop: Loop | None = None

    async def _begin(self, loop: Loop) -> _T:
        raise NotImplementedError

    async def _opened(self) -> Self:
        if self._inside is None:
            if self._began:
                raise Closed(errors.NOT_AGAIN)
            self._began = True
            self._loop = current()
            self._inside = await self._begin(self._loop)
        return self

    def __await__(self) -> Generator[object, None, Self]:
        return self._opened().__await__()

    async def __aenter__(self) -> Self:
        return await self._opened()

    if not TYPE_CHECKING:  # a type checker refuses `with` by itself

        def __enter__(self) -> NoReturn:
            raise TypeError(errors.NOT_WITH.format(kind=type(self).__name__))

        def __exit__(self, *_: object) -> None:
            """Make Python call `__enter__` at all."""

    def _open(self) -> _T:
        if self._inside is None:
            raise Closed(errors.NOT_THERE.format(kind=type(self).__name__))
        return self._inside

    def _the_loop(self) -> Loop:
        assert self._loop is not None
        return self._loop
