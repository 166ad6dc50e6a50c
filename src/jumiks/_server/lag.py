# SPDX-License-Identifier: Apache-2.0
"""The lag policy's settings, checked (docs/design.md, "Lag"); the core applies them."""

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from .._native import lib, nanoseconds

__all__ = ["OnLag"]

OnLag: TypeAlias = Literal["disconnect", "block", "skip"]
"""What happens to a client at its limit: it is cut, `publish` waits for it, or it misses some."""

PATIENCE: Final = 1.0
"""Seconds by default that a client at its limit has to work off half of it."""

_CODES: Final = {"disconnect": lib.JMK_DISCONNECT, "block": lib.JMK_BLOCK, "skip": lib.JMK_SKIP}
_MOST: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Policy:
    """Checked settings.

    Args:
        on_lag: what happens at the limit.
        max_lag: messages a client may be behind; None is no limit but the log's bytes.
        patience: seconds, or None for ever.
    """

    on_lag: OnLag
    max_lag: int | None
    patience: float | None

    @property
    def code(self) -> int:
        """The policy as the core knows it."""
        return _CODES[self.on_lag]

    @property
    def patience_ns(self) -> int:
        """The patience as the core takes it, ns."""
        return nanoseconds(self.patience)


def parse(on_lag: object, max_lag: object, patience: float | Literal["default"] | None) -> Policy:
    """Check what a user said.

    Args:
        on_lag: one of `OnLag`.
        max_lag: messages, 1 or more, or None.
        patience: seconds, None for ever, or "default": `PATIENCE`, and for ever with "block".

    Raises:
        TypeError: max_lag or patience is no number.
        ValueError: one of them is out of its range.
    """
    if on_lag not in get_args(OnLag):
        raise ValueError(f"on_lag={on_lag!r}: it must be 'disconnect', 'block' or 'skip'")
    policy: OnLag = on_lag  # type: ignore[assignment]
    if max_lag is not None:
        if isinstance(max_lag, bool) or not isinstance(max_lag, int):
            raise TypeError(f"max_lag is a number of messages or None, not {max_lag!r}")
        if not 1 <= max_lag <= _MOST:
            raise ValueError(
                f"max_lag={max_lag}: it must be from 1 to {_MOST} messages; None is no limit"
            )
    if patience == "default":
        patience = None if policy == "block" else PATIENCE
    nanoseconds(patience)
    return Policy(policy, max_lag, patience)
