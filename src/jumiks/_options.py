# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF009  # each call of `option` makes one field's default
"""Every option: its name, type, default, check, documentation and help on the command line, once.

An option is a field of a dataclass here. Making one checks all values, and leaves in each field
what its check returned. Servers and clients repeat names, types and defaults in their signatures,
for users and their editors; tests/core/test_options.py compares these copies. The text of their
docstrings comes from here, and so do defaults, checks and help of `jumiks serve` and `listen`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from difflib import get_close_matches
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, cast, get_args

from ._client.link import Delivery, Linker
from ._client.reconnect import Backoff
from ._client.stream import STREAMS, Ack, OnGap, Stream
from ._native import check_callback, lib, nanoseconds, whole_number
from ._peer import group_id
from ._server import access, lag
from ._server.lag_watch import LAG_WARNING, check_lag_warning
from ._server.monitors import check_monitor
from ._wire.handshake import FIRST_ID, NAME_SIZE, START_NOW, START_OLDEST
from ._wire.listener import check_mode

if TYPE_CHECKING:
    import os

    from typing_extensions import Buffer

    from .stats import ClientInfo, EndReason

__all__: list[str] = []

LOG_SIZE: Final = 16 << 20
"""Bytes of the log by default: seconds of history for most, and little memory."""

LEAST_LOG_SIZE: Final = 1 << 16
MOST_LOG_SIZE: Final = 1 << 34

MAX_CLIENTS: Final = 1024
"""Clients by default: as many as a process may have descriptors for on most systems."""

HANDSHAKE_TIMEOUT: Final = 5.0
"""Seconds by default for a client's reply; any local process needs well under one."""

CONNECT_TIMEOUT: Final = 5.0
"""Seconds by default to connect and shake hands; a live server needs well under one."""

MOST_MESSAGE: Final = (1 << 32) - 65
"""Bytes that a frame's size field can hold, less what goes around them."""

MOST_FIRST_ID: Final = 1 << 62
"""Beyond it ids could come to their end."""

_MOST_CLIENTS: Final = 1 << 20
_MOST_KEPT: Final = 1 << 62
_MOST: Final = (1 << 63) - 1

_T = TypeVar("_T")
Check = Callable[[str, object], object]
"""Takes an option's name and value; returns the value to use, or raises with both in the text."""


# ---- checks


def whole(least: int, most: int, unit: str = "", *, none: str = "") -> Check:
    """Return the check of a whole number.

    Args:
        least: the smallest that is right.
        most: the largest that is right.
        unit: what is counted.
        none: what None means, if it is right as well.
    """
    kind = f"a number of {unit}" if unit else "a whole number"

    def check(name: str, value: object) -> object:
        if value is None and none:
            return value
        number = whole_number(value)
        if number is None:
            raise TypeError(f"{name} is {kind}{' or None' * bool(none)}, not {value!r}")
        if not least <= number <= most:
            words = f"{name}={number}: it must be from {least} to {most} {unit}".rstrip()
            raise ValueError(f"{words}; None is {none}" if none else words)
        return number

    return check


def one_of(words: object) -> Check:
    """Return the check of one of a few words, which are a type: `Literal[...]`."""
    allowed = get_args(words)
    *most, last = map(repr, allowed)

    def check(name: str, value: object) -> object:
        if not isinstance(value, str) or value not in allowed:
            raise ValueError(f"{name}={value!r}: it must be {', '.join(most)} or {last}")
        return value

    return check


check_count: Final = whole(0, _MOST_CLIENTS, "clients")
"""Checks a number of clients to wait for."""


def _yes_or_no(name: str, value: object) -> object:
    if not isinstance(value, bool):
        raise TypeError(f"{name} is True or False, not {value!r}")
    return value


def _callback(name: str, value: object) -> object:
    check_callback(value, name)
    return value


def _reply_time(name: str, value: object) -> object:
    nanoseconds(value, name, none=False)
    if not value:
        raise ValueError(f"{name}=0: it must be above 0 seconds, or no client could reply in time")
    return value


def _patience(name: str, value: object) -> object:
    if value != "default":
        nanoseconds(value, name)
    return value


def _history(name: str, value: object) -> object:
    if isinstance(value, str | bytes | bytearray | memoryview) or not isinstance(value, Iterable):
        raise TypeError(f"{name} takes messages one after the other, not {value!r:.100}")
    return value


def _group(name: str, value: object) -> object:
    return None if value is None else group_id(value, name)


_START_NAMES: Final = {"now": START_NOW, "oldest": START_OLDEST}


_MOST_ID: Final = (1 << 64) - 1


def _start(name: str, value: object) -> object:
    if isinstance(value, str) and value in _START_NAMES:
        return _START_NAMES[value]
    if isinstance(value, tuple | list):
        return _position(name, value)
    number = whole_number(value)
    if number is None:
        raise ValueError(
            f"{name}={value!r:.100}: it must be 'now', 'oldest' or a packet id; a pair (server_id, "
            "packet id), as client.position is, names the server too"
        )
    if not FIRST_ID <= number <= _MOST_ID:
        raise ValueError(
            f"{name}={number}: it must be a packet id from {FIRST_ID} to {_MOST_ID}; 'oldest' "
            "starts with the oldest message that is kept"
        )
    return number


def _position(name: str, pair: tuple[object, ...] | list[object]) -> tuple[int, int]:
    numbers = [number for each in pair if (number := whole_number(each)) is not None]
    if not len(numbers) == len(pair) == 2:
        raise ValueError(
            f"{name}={pair!r:.100}: it must be (server_id, packet id), two whole numbers, as "
            "client.position gives them"
        )
    server_id, packet_id = numbers
    if not 1 <= server_id <= _MOST_ID:
        raise ValueError(
            f"{name}={pair!r:.100}: it must be a server_id from 1 to {_MOST_ID}; 0 is a plain 1.0 "
            "server, which keeps no messages"
        )
    if not FIRST_ID <= packet_id <= _MOST_ID:
        raise ValueError(
            f"{name}={pair!r:.100}: it must be a packet id from {FIRST_ID} to {_MOST_ID}"
        )
    return server_id, packet_id


def _time(name: str, value: object) -> object:
    nanoseconds(value, name)
    return value


def _name(name: str, value: object) -> object:
    if value is None:
        return value
    if not isinstance(value, str):
        raise TypeError(f"{name} is a text or None, not {value!r}")
    size = len(value.encode("utf-8", "replace"))
    if size > NAME_SIZE or not value.isprintable():
        what = f"{size} bytes" if size > NAME_SIZE else "control characters"
        raise ValueError(
            f"{name}={value!r}: it has {what}: it must be printable, and at most {NAME_SIZE} bytes"
        )
    return value


def _wait(name: str, value: object) -> object:
    if value != "default":
        nanoseconds(value, name)
    return value


def _spin(name: str, value: object) -> object:
    nanoseconds(value, name, none=False)
    return value


def _on_gap(name: str, value: object) -> object:
    if value not in ("raise", "yield", None) and not callable(value):
        raise TypeError(f"{name} is 'raise', 'yield', a function or None, not {value!r}")
    if callable(value):
        check_callback(value, name)
    return value


def _reconnect(name: str, value: object) -> object:
    if not isinstance(value, bool | Backoff):
        raise TypeError(f"{name} is True, False or a Backoff, not {value!r}")
    return Backoff() if value is True else value


# ---- tables


@dataclass(frozen=True, slots=True)
class About:
    """What the table knows of an option beyond its name, type and default."""

    check: Check
    doc: str
    """The paragraph in the docstrings."""
    help: str
    """The text on the command line; "" if it has no such option."""


def option(default: _T, check: Check, doc: str, *, help: str = "") -> _T:  # noqa: A002
    """Return a field of a table: an option's default, and what `About` has."""
    return field(default=default, metadata={"about": About(check, doc, help)})


def about(one: Field[Any]) -> About:
    """Return what the table knows of a field."""
    return cast(About, one.metadata["about"])


def help_of(table: type[Options], name: str) -> str:
    """Return an option's help on the command line."""
    return next(about(each).help for each in fields(table) if each.name == name)


@dataclass(frozen=True)
class Options:
    """The base of all tables."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = about(each).check(each.name, getattr(self, each.name))
            object.__setattr__(self, each.name, value)


@dataclass(frozen=True, kw_only=True)
class ServerOptions(Options):
    """The options of a server."""

    max_lag: int | None = option(
        None,
        whole(1, _MOST, "messages", none="no limit"),
        "messages that a client may be behind; None is no limit but the log's bytes.",
        help="how many messages a client may be behind (default: as many as the log holds)",
    )
    on_lag: lag.OnLag = option(
        "disconnect",
        one_of(lag.OnLag),
        'what happens to a client at its limit. `"disconnect"` cuts it, `"block"` makes `publish` '
        'wait for it, `"skip"` has it miss messages, counted and reported; with `patience=0` at '
        "once. See docs/lag-policy.md.",
        help="what to do with a client at that limit: disconnect it (the default), wait for it "
        "(block), or have it miss messages (skip); --patience says how long to wait first",
    )
    patience: float | Literal["default"] | None = option(
        "default",
        _patience,
        "seconds that a client at its limit has to work off half of that limit. A client that does "
        'not is disconnected, or with `"skip"` skipped. `publish` waits meanwhile, unless another '
        "client is at most half way to its limit. 1 by default; 0 never waits; None, the default "
        'with `"block"`, waits without end.',
        help="how long a client at that limit has to work off half of it, while the input waits "
        "(default: 1; with block none, which is no limit)",
    )
    log_size: int = option(
        LOG_SIZE,
        whole(LEAST_LOG_SIZE, MOST_LOG_SIZE, "bytes"),
        "bytes of the log, rounded up to a power of two; allocated at once.",
        help="bytes of memory for messages, which are also a limit for each client (default: 16M, "
        "or what --keep in bytes and --max-message need); in all sizes K is 1024, and KB and KiB "
        "are K",
    )
    keep: int = option(
        0,
        whole(0, _MOST_KEPT),
        "how many already acked messages to keep for clients that connect later "
        "(`Client(start=...)`), as far as they fit in `keep_bytes`. Without `keep_bytes` "
        "it may be at most log_size / 2 / 16, the number of empty messages in half of the log.",
        help="how many already acked messages to keep for clients that connect later (--from), "
        "or, with a unit, how many bytes of them: 8000 is messages, 8M is bytes",
    )
    keep_bytes: int = option(
        0,
        whole(0, _MOST),
        "the same in bytes, headers included; at most half of `log_size`, and half of it by "
        "default where `keep` is given. Without either, history stays until its room is needed.",
    )
    first_id: int = option(
        FIRST_ID,
        whole(FIRST_ID, MOST_FIRST_ID),
        "the packet id of the first message, and of the first one of `history` if there are any. "
        "A feed that continues another one begins where that one ended.",
    )
    server_id: int | None = option(
        None,
        whole(1, (1 << 64) - 1, none="a random number"),
        "by which clients tell one feed from another; a random number by default. Give the number "
        "of the feed that this one continues, and only then: a client that comes back to the same "
        "number goes on behind its last message, and takes messages with the same ids for the "
        "same ones.",
    )
    history: Iterable[Buffer] = option(
        (),
        _history,
        "messages that are in the log before anybody can connect, as if they had been published: "
        "an iterable of buffers, read one by one. Where they do not fit, the oldest are dropped. "
        "`keep` holds for them as for others. If the iterable raises, no server is made. The "
        "iterable may be a client of the server before, which ends when that server closes. So if "
        "the address is still in use then, it is tried for another second.",
    )
    max_message: int | None = option(
        None,
        whole(1, MOST_MESSAGE, "bytes", none="a quarter of log_size"),
        "largest message in bytes; a quarter of the log at most, and by default.",
        help="largest message, bytes (default: a quarter of --log-size); the log takes at least "
        "four times as much memory",
    )
    max_clients: int = option(
        MAX_CLIENTS,
        whole(1, _MOST_CLIENTS),
        "how many clients may be connected at a time. "
        "A place is free a moment after its client has closed: `Client(wait=1)` waits for it.",
    )
    max_clients_per_user: int | None = option(
        None,
        whole(1, _MOST_CLIENTS, none="half of max_clients"),
        "how many clients of one user may be connected; clients that are still connecting count. "
        "The user is the one that the kernel reports. None is half of `max_clients`, and no limit "
        "for the server's own user and root, which could stop it anyway. A number holds for these "
        "two as well.",
    )
    handshake_timeout: float = option(
        HANDSHAKE_TIMEOUT, _reply_time, "seconds that a client has for its reply to the hello."
    )
    mode: int | None = option(
        None,
        check_mode,
        "permissions of the path, such as 0o660; the umask decides by default.",
        help="permissions of the path, such as 0660 (default: the umask decides)",
    )
    group: str | int | None = option(
        None,
        _group,
        "group of the path, a name or a number; 0o660 is the mode then by default.",
        help="group of the path, a name or a number",
    )
    allow: access.Allow = option(
        None,
        access.check_allow,
        "who may connect: None for the default (the server's own user and root on an abstract "
        'address; on a path, any user that its permissions allow), `"anyone"`, a user id, a '
        "`Group`, a list or set of user ids and Groups, or a function that takes a `Peer` and "
        "returns True or False.",
        help="allow any user to connect to an abstract address; at a path its permissions say who "
        "may: --mode 0666",
    )
    share_log: bool = option(
        True,
        _yes_or_no,
        "whether clients that can may read the log itself, which is the fastest way. A client that "
        "may connect may read all that the log keeps; no client can write it.",
    )
    monitor: access.Allow | Literal[False] = option(
        None,
        check_monitor,
        "who may ask for the status (`jumiks status`), in the words of `allow`: None for the "
        "server's own user and root, False for nobody.",
    )
    on_connect: Callable[[ClientInfo], object] | None = option(
        None,
        _callback,
        "called with a `ClientInfo` when a client has connected, from the control thread.",
    )
    on_disconnect: Callable[[ClientInfo, EndReason], object] | None = option(
        None,
        _callback,
        "called with a `ClientInfo` and an `EndReason` when a client is gone, from the control "
        "thread.",
    )
    on_lag_warning: Callable[[ClientInfo], object] | None = option(
        None,
        _callback,
        "called with a `ClientInfo` when a client has come near its limit, from the control "
        "thread; once, until it is well away from it again. Lag is checked four times a second.",
    )
    lag_warning: float = option(
        LAG_WARNING,
        check_lag_warning,
        "the part of `max_lag`, or of the log's bytes, that is near: above 0, up to 1.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "log_size", 1 << (self.log_size - 1).bit_length())
        self._check_together()

    def _check_together(self) -> None:
        if self.keep_bytes > self.log_size // 2:
            raise ValueError(
                f"keep_bytes={self.keep_bytes}: at most half of log_size, {self.log_size // 2}, "
                "is kept, as clients need room too: raise log_size"
            )
        if self.keep > self.most_kept and not self.keep_bytes:
            raise ValueError(
                f"keep={self.keep}: half of log_size, {self.log_size // 2} bytes, has room for "
                f"{self.most_kept} messages at most, as each takes {lib.JMK_FRAME_HEADER} bytes "
                "and its own: raise log_size, or keep fewer"
            )
        most = min(self.log_size // 4, MOST_MESSAGE)
        if self.max_message is not None and self.max_message > most:
            raise ValueError(
                f"max_message={self.max_message}: it must be from 1 to {most} bytes, a quarter of "
                "log_size: raise log_size"
            )
        if (self.max_clients_per_user or 0) > self.max_clients:
            raise ValueError(
                f"max_clients_per_user={self.max_clients_per_user}: it must be from 1 to "
                f"{self.max_clients}, which is max_clients"
            )

    @property
    def policy(self) -> lag.Policy:
        """The lag policy."""
        return lag.Policy.of(self.on_lag, self.max_lag, self.patience)

    @property
    def kept(self) -> tuple[int, int]:
        """How many acked messages to keep, in messages and in bytes, both limits of it."""
        if self.keep:
            return self.keep, self.keep_bytes or self.log_size // 2
        return _MOST_KEPT if self.keep_bytes else 0, self.keep_bytes

    @property
    def most_kept(self) -> int:
        """How many acked messages can be kept, if all are empty."""
        return self.log_size // 2 // int(lib.JMK_FRAME_HEADER)

    @property
    def largest(self) -> int:
        """The largest message, bytes."""
        return self.max_message or min(self.log_size // 4, MOST_MESSAGE)

    @property
    def quota(self) -> access.Quota:
        """How many connections a user may have."""
        if self.max_clients_per_user is None:
            return access.Quota.share(self.max_clients)
        return access.Quota(self.max_clients_per_user)

    @property
    def rule(self) -> access.Rule:
        """Who may connect."""
        return cast(access.Rule, self.allow)

    @property
    def monitor_rule(self) -> access.Rule | Literal[False]:
        """Who may ask for the status."""
        return cast("access.Rule | Literal[False]", self.monitor)


@dataclass(frozen=True, kw_only=True)
class AsyncClientOptions(Options):
    """The options of a client in an event loop, which all clients have."""

    start: Literal["now", "oldest"] | int | tuple[int, int] = option(
        "now",
        _start,
        '`"now"`, `"oldest"` for all that the server still keeps, or the packet id to go on at. If '
        "that message is gone, from the oldest that is kept, and a gap says so. With `keep` the "
        "server keeps that many, and half of what else its log has, so that this client has time "
        "to read it: what it leaves out of its log is a gap too. `(server_id, packet id)`, which "
        "`client.position` gives, is an id of that server alone: on another one it starts with "
        "the oldest, behind a gap. If that server's feed has not come so far yet, it is waited "
        "for, up to `timeout` seconds.",
        help="where to start: at the oldest message that is kept, at the next one (the default), "
        "or at an id",
    )
    timeout: float | None = option(
        CONNECT_TIMEOUT, _time, "seconds to connect and shake hands, per try; None is no limit."
    )
    name: str | None = option(
        None,
        _name,
        "what the client calls itself, at most 64 bytes of UTF-8: the server's user sees it in "
        "`ClientInfo`, `jumiks status`, logs and metrics. None is the program's name.",
        help="what to be called in the server's status (default: the program's name)",
    )
    wait: float | Literal["default"] | None = option(
        "default",
        _wait,
        "seconds to wait for a server that is not there yet, or that is just closing, or full. 0 "
        "tries once; None has no limit. By default 0, or with `reconnect` as long as its `give_up` "
        "says. What no waiting helps against is raised at once: see `reconnect` in docs/tour.md.",
        help="how long to wait for a server that is not there yet (default: 0, or with --reconnect "
        "without limit)",
    )
    delivery: Delivery = option(
        "shared",
        one_of(Delivery),
        "the best way of getting messages to ask for; `client.delivery` tells what it became. "
        '`"shared"` reads the server\'s log itself, where the server shares it. `"framed"` gets '
        'packets with many messages each, `"classic"` one message per packet, as plain 1.0 does: '
        "messages of up to 262136 bytes; at a larger one the server ends the connection, and with "
        "`reconnect` it becomes a gap.",
        help="how to get messages: from the server's log itself (shared, the default, where both "
        "can), in packets of many (framed) or of one (classic), of up to 262136 bytes each",
    )
    on_gap: OnGap = option(
        None,
        _on_gap,
        "what happens at a `Gap`, in its place in the stream: messages that the server skipped for "
        "this client (its policy says so), did not have, or had not delivered when it ended. A "
        "function is called with the gap, and if it raises, that comes out of the receive, and the "
        "next one goes on behind the gap. It cannot receive from this client (`Busy`). "
        '`"raise"` raises `MessagesLost`; `"yield"` has it received like a message; by default '
        "`missed` counts it, and the logger `jumiks` has the first one, at WARNING.",
    )
    ack: Ack = option(
        "after",
        one_of(Ack),
        'when a message counts as handled. `"after"`: when you ask for the next one; after a crash '
        'you can get it again, at `resume_at`. `"before"`: when it is handed out; you never get it '
        'twice, and a crash loses it. `"manual"`: when you call `ack` with its id or a later one, '
        "so you may have many messages in work; those count towards your lag.",
    )
    reconnect: bool | Backoff = option(
        False,
        _reconnect,
        "whether to wait for a server that is not there yet, and to come back to the address when "
        "the server has closed, died or was started again, and when to try; True is `Backoff()`. "
        "The stream goes on behind the last message handed "
        "out, if the server is the same and has it still; otherwise with the oldest that the new "
        "one has, behind a gap.",
        help="wait for the server, and connect again when it has gone, instead of ending with it",
    )

    def stream(
        self, where: str | os.PathLike[str], *, spin: float = 0.0, ack_patience: int = 0
    ) -> Stream[Any]:
        """Return a client's stream, which is not connected yet.

        Args:
            where: the server's address.
            spin: seconds to look for a message before sleeping.
            ack_patience: nanoseconds that an ack may wait for room in the socket.
        """
        start = cast("int | tuple[int, int]", self.start)
        of, start = start if isinstance(start, tuple) else (0, start)
        by_hand = self.ack == "manual"
        return STREAMS[self.ack](
            Linker(where, self.delivery, self.timeout, spin, acks_by_hand=by_hand, name=self.name),
            start=start,
            of=of,
            on_gap=self.on_gap,
            wait=self.wait,
            backoff=self.reconnect or None,  # type: ignore[arg-type]
            ack_patience=ack_patience,
        )


@dataclass(frozen=True, kw_only=True)
class ClientOptions(AsyncClientOptions):
    """The options of a client."""

    spin: float = option(
        0.0,
        _spin,
        "seconds to look for a message before sleeping, where the log is shared: a lower latency, "
        "for a core's time.",
    )


# ---- what is made of a table


def given(table: type[Options], arguments: Mapping[str, object]) -> dict[str, Any]:
    """Return the options among a function's arguments, which are its `locals()` at the start."""
    return {each.name: arguments[each.name] for each in fields(table)}


def callbacks(table: type[Options]) -> list[str]:
    """Return the names of the options that are called back."""
    return [each.name for each in fields(table) if about(each).check is _callback]


def _unknown(kind: str, table: type[Options], name: str) -> TypeError:
    """Return the error for an option that a class does not have. It names the class that has it."""
    names = [each.name for each in fields(table)]
    of_client = "jumiks.Client alone" if issubclass(ClientOptions, table) else "the client"
    for other, owner in ((ServerOptions, "the server"), (ClientOptions, of_client)):
        if any(each.name == name for each in fields(other)):
            return TypeError(f"{kind} has no option {name!r}: it is one of {owner}")
    near = get_close_matches(name, names, 1)
    advice = f": did you mean {near[0]!r}?" if near else f"; its options: {', '.join(names)}"
    return TypeError(f"{kind} has no option {name!r}{advice}")


def check_names(kind: str, table: type[Options], names: Iterable[str]) -> None:
    """Raise `TypeError` for the first name that is neither `where` nor an option of a class."""
    known = {"self", "where", *(each.name for each in fields(table))}
    for name in names:
        if name not in known:
            raise _unknown(kind, table, name)


def takes(table: type[Options]) -> Callable[[type[_T]], type[_T]]:
    """Return a class decorator: the class takes the options of this table.

    Its docstring gets them in place of `{options}`. An option that is not in the table is refused,
    and the error says which one would be right.
    """
    text = "\n".join(
        textwrap.fill(f"{each.name}: {about(each).doc}", 92, subsequent_indent=" " * 4)
        for each in fields(table)
    )
    text = textwrap.indent(text, " " * 8).lstrip()

    def fill(kind: type[_T]) -> type[_T]:
        if kind.__doc__ is not None:  # else Python runs with -OO
            kind.__doc__ = kind.__doc__.replace("{options}", text)
        make: Callable[..., None] = kind.__init__

        @wraps(make)
        def checked(self: object, *where: object, **options: object) -> None:
            if len(where) > 1:
                first = next(each for each in fields(table) if each.default is not None)
                example = f"{kind.__name__}({where[0]!r:.100}, {first.name}={first.default!r})"
                raise TypeError(
                    f"{kind.__name__} takes one positional argument, the address: write all else "
                    f"as keywords, for example {example}"
                )
            check_names(kind.__name__, table, options)
            make(self, *where, **options)

        type.__setattr__(kind, "__init__", checked)
        return kind

    return fill
