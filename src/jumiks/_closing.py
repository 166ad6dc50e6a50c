# SPDX-License-Identifier: Apache-2.0
"""What all that has a `close` has in common: `with`, `async with`, `repr`."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

__all__: list[str] = []


def shown(kind: str, about: Callable[[], str]) -> str:
    """Return the `repr` of an object, which debuggers also ask for if its constructor failed.

    Args:
        kind: its class.
        about: returns what stands behind that.
    """
    try:
        return f"<jumiks.{kind}{about()}>"
    except AttributeError:
        return f"<jumiks.{kind}: not made>"


class Closing:
    """Closed at the end of a `with` block."""

    def close(self) -> None:
        """Close it."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class AsyncClosing:
    """Closed at the end of an `async with` block."""

    async def close(self) -> None:
        """Close it."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()
