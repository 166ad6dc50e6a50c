# SPDX-License-Identifier: Apache-2.0
"""The lag policy's settings (docs/design.md, "Lag"); the core applies them."""

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from .._native import lib, nanoseconds

__all__ = ["OnLag"]

OnLag: TypeAlias = Literal["disconnect", "block", "skip"]
"""What happens to a client at its limit: it is cut, `publish` waits for it, or it misses some."""

PATIENCE: Final = 1.0
"""Seconds by default that a client at its limit has to work off half of it."""

_CODES: Final = {name: getattr(lib, f"JMK_{name.upper()}") for name in get_args(OnLag)}


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
        return int(_CODES[self.on_lag])

    @property
    def patience_ns(self) -> int:
        """The patience as the core takes it, ns."""
        return nanoseconds(self.patience)

    @classmethod
    def of(
        cls, on_lag: OnLag, max_lag: int | None, patience: float | Literal["default"] | None
    ) -> "Policy":
        """Return the policy of checked options; "default" becomes the patience that it means."""
        if patience == "default":
            patience = None if on_lag == "block" else PATIENCE
        return cls(on_lag, max_lag, patience)
