# SPDX-License-Identifier: Apache-2.0
# What cffi makes of csrc/jumiks.h, as far as this package uses it. Each handle has a type of its
# own, so that mypy finds one that is passed for another.
from collections.abc import Callable
from typing import Generic, Literal, TypeVar, overload

class Server: ...
class Client: ...
class Arena: ...

class Account:
    key: int
    delivery: int
    reason: int
    limit_kind: int
    error: int
    limit: int
    lag: int
    lag_bytes: int
    worst_lag: int
    queued: int
    unacked: int
    kernel_bytes: int
    sent_id: int
    acked_id: int
    first_lost: int
    last_lost: int
    oldest_id: int
    messages: int
    bytes: int
    packets: int
    skipped: int
    since: int
    last_ack: int
    too_large: int
    largest: int

class Event:
    kind: int
    account: Account

class Config:
    first_id: int
    log_size: int
    keep: int
    keep_bytes: int
    max_lag: int
    patience: int
    policy: int
    max_message: int
    max_clients: int
    send_buffer: int

class Attached:
    key: int
    first_id: int
    first_offset: int
    max_packet: int
    cursor_fd: int
    left_out: int

class Stats:
    oldest_id: int
    next_id: int
    log_size: int
    log_used: int
    log_held: int
    published: int
    published_bytes: int
    delivered: int
    delivered_bytes: int
    packets: int
    skipped: int
    clients: int
    unread: int
    kernel_bytes: int
    rounds: int
    inline_rounds: int
    waits: int

class Goodbye:
    reason: int
    limit_kind: int
    limit: int
    lag: int
    lag_bytes: int
    acked_id: int
    first_lost: int
    last_lost: int
    oldest_id: int

class Fault:
    kind: int
    found: int
    due: int

class ClientConfig:
    guard: int
    first_id: int
    max_lag: int
    arena_size: int
    delivery: int
    max_packet: int
    max_message: int
    labels: int
    log_fd: int
    cursor_fd: int
    first_offset: int
    spin: int
    acks_by_hand: bool

_T = TypeVar("_T")

class Array(Generic[_T]):
    def __getitem__(self, index: int, /) -> _T: ...
    def __len__(self) -> int: ...

class VoidPointer: ...

class _FFI:
    NULL: VoidPointer
    @overload
    def new(self, cdecl: Literal["struct jmk_config *"], /) -> Config: ...
    @overload
    def new(self, cdecl: Literal["struct jmk_client_config *"], /) -> ClientConfig: ...
    @overload
    def new(self, cdecl: Literal["struct jmk_account *"], /) -> Account: ...
    @overload
    def new(self, cdecl: Literal["struct jmk_event *"], /) -> Event: ...
    @overload
    def new(self, cdecl: Literal["struct jmk_attached *"], /) -> Attached: ...
    @overload
    def new(self, cdecl: Literal["struct jmk_stats *"], /) -> Stats: ...
    @overload
    def new(self, cdecl: Literal["struct jmk_goodbye *"], /) -> Goodbye: ...
    @overload
    def new(self, cdecl: Literal["struct jmk_fault *"], /) -> Fault: ...
    @overload
    def new(self, cdecl: Literal["struct jmk_account[]"], length: int, /) -> Array[Account]: ...
    @overload
    def new(
        self,
        cdecl: Literal["uint64_t *", "uint32_t *", "size_t *", "int *"],
        init: int = 0,
        /,
    ) -> Array[int]: ...
    @overload
    def new(self, cdecl: Literal["void **"], /) -> Array[VoidPointer]: ...
    @overload
    def from_buffer(self, cdecl: Literal["struct jmk_account *"], data: bytes, /) -> Account: ...
    @overload
    def from_buffer(self, data: memoryview, /) -> VoidPointer: ...
    def cast(self, cdecl: Literal["uintptr_t"], value: object, /) -> int: ...
    def gc(self, cdata: _T, destructor: Callable[[_T], object], size: int = 0, /) -> _T: ...

class _Lib:
    JMK_E_TIMEOUT: int
    JMK_E_CLOSED: int
    JMK_E_FORKED: int
    JMK_E_FULL: int
    JMK_E_TURN: int
    JMK_E_MINE: int
    JMK_E_TOO_LARGE: int
    JMK_E_NO_SLOT: int
    JMK_E_START: int
    JMK_E_GONE: int
    JMK_E_BUSY: int
    JMK_E_END: int
    JMK_E_LOST: int
    JMK_E_PROTOCOL: int
    JMK_E_ACK: int
    JMK_E_LOG: int
    JMK_E_SHAPE: int
    JMK_E_LAST: int
    JMK_FIRST_ID: int
    JMK_FRAME_HEADER: int
    JMK_LEAST_PACKET: int
    JMK_ANSWER_SIZE: int
    JMK_KIND_WAKE: int
    JMK_CLASSIC: int
    JMK_FRAMED: int
    JMK_SHARED: int
    JMK_WOULD_WAIT: int
    JMK_HAS_MORE: int
    JMK_WANTS_ROOM: int
    JMK_GUARD_NONE: int
    JMK_GUARD_UNTIL_EMPTY: int
    JMK_GUARD_ALWAYS: int
    JMK_MOST_DISPOSED: int
    JMK_R_NONE: int
    JMK_R_LAGGED: int
    JMK_R_CLOSING: int
    JMK_R_PROTOCOL: int
    JMK_R_TOO_LARGE: int
    JMK_R_KICKED: int
    JMK_R_LEFT: int
    JMK_R_ERROR: int
    JMK_LIMIT_MESSAGES: int
    JMK_LIMIT_BYTES: int
    JMK_EVENT_GONE: int
    JMK_EVENT_SKIPPED: int
    JMK_EVENT_CLOSED: int

    def jmk_dispose(self, fd: int, /) -> None: ...
    def jmk_dispose_pending(self) -> int: ...
    def jmk_server_make(self, config: Config, error: Array[int], /) -> Server: ...
    def jmk_server_free(self, server: Server, /) -> Server: ...
    def jmk_server_event_fd(self, server: Server, /) -> int: ...
    def jmk_server_next_event(self, server: Server, out: Event, /) -> int: ...
    def jmk_socket_prepare(self, server: Server, fd: int, max_packet: Array[int], /) -> int: ...
    def jmk_server_attach(
        self, server: Server, fd: int, delivery: int, max_packet: int, start: int, out: Attached, /
    ) -> int: ...
    def jmk_server_log_fd(self, server: Server, /) -> int: ...
    def jmk_server_send_packets(self, server: Server, key: int, /) -> int: ...
    def jmk_page_watch_new(self) -> int: ...
    def jmk_page_watch(self, watch_fd: int, page_fd: int, /) -> int: ...
    def jmk_server_release(self, server: Server, key: int, /) -> int: ...
    def jmk_server_disconnect(self, server: Server, key: int, reason: int, /) -> int: ...
    def jmk_server_wait_room(
        self,
        server: Server,
        size: int,
        timeout: int,
        holder: Account,
        waited: Array[int] | VoidPointer,
        /,
    ) -> int: ...
    def jmk_server_wait_acked(
        self, server: Server, packet_id: int, timeout: int, holder: Account, /
    ) -> int: ...
    def jmk_server_accounts(
        self, server: Server, out: Array[Account], capacity: int, count: Array[int], /
    ) -> int: ...
    def jmk_server_account(self, server: Server, key: int, out: Account, /) -> int: ...
    def jmk_server_ids(
        self, server: Server, oldest_id: Array[int], next_id: Array[int], /
    ) -> int: ...
    def jmk_server_stats(self, server: Server, out: Stats, /) -> int: ...
    def jmk_server_close(self, server: Server, linger: int, /) -> int: ...
    def jmk_server_join(self, server: Server, timeout: int, /) -> int: ...
    def jmk_client_make(self, fd: int, config: ClientConfig, error: Array[int], /) -> Client: ...
    def jmk_client_watch(self, client: Client, pidfd: int, /) -> None: ...
    def jmk_client_server_fd(self, client: Client, /) -> int: ...
    def jmk_client_look_ahead(self, client: Client, out: int, waited: int, /) -> int: ...
    def jmk_client_published_id(self, client: Client, /) -> int: ...
    def jmk_client_free(self, client: Client, /) -> Client: ...
    def jmk_client_ack(self, client: Client, handled: int, timeout: int, /) -> int: ...
    def jmk_client_hold_batch(self, client: Client, /) -> Arena: ...
    def jmk_held_is_intact(self, arena: Arena, /) -> int: ...
    def jmk_client_batch_is_intact(self, client: Client, /) -> int: ...
    def jmk_held_free(self, arena: Arena, /) -> None: ...
    def jmk_client_goodbye(self, client: Client, out: Goodbye, /) -> None: ...
    def jmk_client_fault(self, client: Client, out: Fault, /) -> None: ...
    def jmk_client_last_id(self, client: Client, /) -> int: ...
    def jmk_client_acked_id(self, client: Client, /) -> int: ...
    def jmk_client_close(self, client: Client, /) -> int: ...

ffi: _FFI
lib: _Lib
