# SPDX-License-Identifier: Apache-2.0
"""The lag policy beside a model of its rule, docs/lag-policy.md, with a clock that the test sets.

The real core is driven without Python above it: clients come, ack, go and do nothing, time passes,
and what the policy does at each attempt to publish must be what the rule says. All messages have
one size, so a limit in bytes is a number of messages too.
"""

import mmap
import os
import shutil
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
from cffi import FFI
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support import reference
from support.base import ROOT
from support.c import CORE, FLAGS, folder_of_the_run, made_once, run

pytestmark = pytest.mark.no_core

LOG_SIZE = 4096
FIRST_ID = 100000
PATIENCE = 1000
"""ns; time passes only where a rule says so."""

POLICIES = ["disconnect", "block", "skip"]
CLASSIC, FRAMED, SHARED = 0, 1, 2
MOST_CLIENTS = 4
TIMEOUT, FULL, GONE = 1, 4, 10
LAGGED, LEFT = 1, 6
EVENT_GONE, EVENT_SKIPPED, EVENT_CLOSED = 1, 2, 3
LIMITS = {1: "messages", 2: "bytes"}
CURSOR = 192
"""Bytes of a cursor page."""

ACK_AT = 0
"""Where in a cursor page the ack stands."""

SKIP, RESUME = 4, 5


@dataclass
class Term:
    """What a client that was found at its limit has to do to keep its place."""

    due: int
    """The ack that shows that half of the limit is worked off."""
    since: int
    limit_kind: str


@dataclass
class Place:
    """One client, as the rule sees it.

    Args:
        key: its name in the core.
        mode: how it gets messages.
        since: when it connected.
        acked: the last message that it acked, or that lies before its first.
        shown_from: the newest message when it came, or when it went on behind a gap.
        extra: what it had behind it at its start, until it is within max_lag.
    """

    key: int
    mode: int
    since: int
    acked: int
    shown_from: int
    extra: int
    sent: int = 0
    skipping: bool = False
    term: Term | None = None


class Model:
    """The rule: who passes, who waits, who is given up.

    Args:
        policy: on_lag.
        max_lag: messages; 0: bytes alone limit.
        length: bytes of each message in the log.
        patience: ns; negative: it has no end.
    """

    def __init__(self, policy: str, max_lag: int, length: int, patience: int) -> None:
        self.policy = policy
        self.max_lag = max_lag
        self.length = length
        self.patience = patience
        self.slots = LOG_SIZE // length
        self.half_slots = LOG_SIZE // 2 // length
        self.last = FIRST_ID - 1
        self.now = 0
        self.places: list[Place] = []
        self.waiting_since: int | None = None
        """Since when nothing is let through, as the publisher outruns all; never with `block`."""

    # ---- what the words of the rule mean ----

    def lag(self, place: Place) -> int:
        return self.last - place.acked

    def limit_of(self, place: Place) -> str | None:
        """At which limit it is, if at any: one message more would take it beyond."""
        if place.skipping:
            return None
        if self.max_lag and self.lag(place) >= self.max_lag + place.extra:
            return "messages"
        return "bytes" if self.lag(place) >= self.slots else None

    def half(self, place: Place) -> int:
        """The largest lag that is at most half way to each limit."""
        if not self.max_lag:
            return self.half_slots
        return min((self.max_lag + place.extra) // 2, self.half_slots)

    def keeps_up(self, place: Place) -> bool:
        """It is at most half way, and has been there for long enough to show that."""
        if place.skipping or place.extra or self.lag(place) > self.half(place):
            return False
        shown = place.acked - place.shown_from
        if 0 < shown >= self.half(place):
            return True
        old = self.patience >= 0 and self.now >= place.since + self.patience
        return self.lag(place) == 0 and old

    def is_over(self, term: Term) -> bool:
        since = term.since
        if self.waiting_since is not None:
            since = min(since, self.waiting_since)
        return self.patience >= 0 and self.now >= since + self.patience

    # ---- what happens ----

    def caught_up(self, place: Place) -> None:
        """From when it is first within max_lag, that alone holds."""
        if place.extra and self.lag(place) <= self.max_lag:
            place.extra = 0

    def came(self, key: int, mode: int, first: int) -> Place:
        behind = self.last + 1 - first
        place = Place(key, mode, self.now, first - 1, self.last, behind if self.max_lag else 0)
        place.sent = place.acked
        self.caught_up(place)
        self.places.append(place)
        return place

    def is_offered(self, place: Place) -> None:
        """What it is sent by now; of a history, max_lag messages beyond its ack."""
        if place.skipping:
            return
        most = self.last
        if place.extra and place.mode != SHARED:
            most = min(most, place.acked + self.max_lag)
        place.sent = max(place.sent, most)

    def has_acked(self, place: Place, packet_id: int) -> range | None:
        """It acks, and is told the gap if it was skipped and has now acked all it was sent."""
        place.acked = max(place.acked, packet_id)
        self.caught_up(place)
        if place.skipping and place.acked == place.sent and place.mode != SHARED:
            return self.goes_on(place)
        return None

    def goes_on(self, place: Place) -> range | None:
        """With the newest message there is."""
        got = place.sent
        place.skipping = False
        place.extra = 0
        place.acked = max(got, self.last - 1)
        place.sent = place.acked
        place.shown_from = self.last
        return range(got + 1, place.acked + 1) if place.acked > got else None

    def attempt(self) -> tuple[bool, dict[int, str]]:
        """One try to publish: does it pass, and who is given up at which limit?"""
        given_up: dict[int, str] = {}
        in_the_way = [place for place in self.places if self.limit_of(place)]
        if in_the_way or self.waiting_since is not None:
            in_the_way = self.judge(given_up)
        if in_the_way:
            return False, given_up
        self.last += 1
        return True, given_up

    def judge(self, given_up: dict[int, str]) -> list[Place]:
        paced_by_the_fastest = self.policy != "block"
        outruns_all = paced_by_the_fastest and not any(map(self.keeps_up, self.places))
        for place in self.places:
            if place.term and place.acked >= place.term.due:
                place.term = None
            limit = self.limit_of(place)
            if limit and not place.term:
                due = max(self.last - self.half(place), place.acked + 1)
                place.term = Term(due, self.now, limit)
        in_the_way = []
        for place in list(self.places):
            at_limit = self.limit_of(place) is not None
            if not (at_limit or (outruns_all and place.term)):
                continue
            assert place.term
            if self.is_over(place.term) or (paced_by_the_fastest and not outruns_all):
                given_up[place.key] = place.term.limit_kind
                self.give_up(place)
            else:
                in_the_way.append(place)
        if not in_the_way or not paced_by_the_fastest:
            self.waiting_since = None
        elif self.waiting_since is None:
            self.waiting_since = self.now
        return in_the_way

    def give_up(self, place: Place) -> None:
        place.term = None
        if self.policy == "skip":
            place.skipping = True
        else:
            self.places.remove(place)


# ---- the real one ----


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    library = folder_of_the_run(tmp_path_factory) / "core-with-a-clock.so"
    options = ["-shared", "-fPIC", "-Wl,--wrap=clock_gettime"]
    with made_once(library) as to_be_made:
        if to_be_made:
            run(compiler, *FLAGS, *options, *CORE, ROOT / "tests" / "c" / "clock.c", "-o", library)
    ffi: Any = FFI()
    header = (ROOT / "csrc" / "jumiks.h").read_text("utf-8")
    ffi.cdef(header.partition("/* cdef: begin */")[2].partition("/* cdef: end */")[0])
    ffi.cdef("void set_clock(int64_t now);")
    library_of: Any = ffi.dlopen(str(library))
    return ffi, library_of


class Peer:
    """The other end of a place: a socket, and perhaps a page."""

    def __init__(self, sock: socket.socket, cursor_fd: int) -> None:
        self.sock = sock
        self.messages: list[int] = []
        self.told: list[tuple[int, int]] = []
        self.page: mmap.mmap | None = None
        if cursor_fd >= 0:
            self.page = mmap.mmap(cursor_fd, CURSOR)
            os.close(cursor_fd)

    def store_ack(self, packet_id: int) -> None:
        assert self.page is not None
        self.page[ACK_AT : ACK_AT + 8] = packet_id.to_bytes(8, "little")

    def say(self, *words: int) -> None:
        self.sock.send(b"".join(word.to_bytes(8, "little") for word in words))

    def read(self, mode: int) -> None:
        with suppress(BlockingIOError, ConnectionResetError):
            while packet := self.sock.recv(1 << 17):
                if mode == CLASSIC:
                    self.messages.append(reference.decode_classic(packet).id)
                    continue
                for frame in reference.decode_frames(packet):
                    if frame.kind == reference.DATA:
                        self.messages.append(frame.id)
                    elif frame.kind in (SKIP, RESUME):
                        self.told.append((frame.kind, frame.id))

    def close(self) -> None:
        self.sock.close()
        if self.page is not None:
            self.page.close()


class Policy(RuleBasedStateMachine):
    """The core and the model, side by side."""

    core: tuple[Any, Any]

    def __init__(self) -> None:
        super().__init__()
        self.ffi, self.lib = self.core
        self.server: Any = None
        self.peers: dict[int, Peer] = {}
        self.refused_since: int | None = None

    @initialize(
        policy=st.sampled_from(POLICIES),
        max_lag=st.sampled_from([0, 1, 2, 3, 4, 7, 10]),
        length=st.sampled_from([1024, 800, 512, 256, 64]),
        patience=st.sampled_from([0, PATIENCE, PATIENCE, PATIENCE, -1]),
        before=st.sampled_from([0, 3, 100]),
    )
    def begin(self, policy: str, max_lag: int, length: int, patience: int, before: int) -> None:
        self.model = Model(policy, max_lag, length, patience)
        self.message = b"x" * (length - 16)
        # Others of the core's threads go by the real one, so this one is never ahead of that.
        self.set_clock(time.monotonic_ns() - 10**9)
        config = self.ffi.new(
            "struct jmk_config *",
            {
                "log_size": LOG_SIZE,
                "max_lag": max_lag,
                "patience": patience,
                "policy": POLICIES.index(policy),
                "max_message": LOG_SIZE // 4,
                "max_clients": 1000,
                "send_buffer": 1 << 18,
            },
        )
        out = self.ffi.new("jmk_server **")
        assert self.lib.jmk_server_new(out, config) == 0
        self.server = out[0]
        for _ in range(before):
            self.publish_one()

    def set_clock(self, now: int) -> None:
        self.model.now = now
        self.lib.set_clock(now)

    def make_a_round(self) -> Any:
        """All acks count, and all is sent."""
        stats = self.ffi.new("struct jmk_stats *")
        assert self.lib.jmk_server_stats(self.server, stats) == 0
        return stats

    # ---- clients ----

    @precondition(lambda self: len(self.model.places) < MOST_CLIENTS)
    @rule(
        mode=st.sampled_from([CLASSIC, FRAMED, FRAMED, SHARED]),
        back=st.one_of(st.just(0), st.integers(1, 12), st.just(1000)),
    )
    def come(self, mode: int, back: int) -> None:
        """Start from now, some messages back, or at the oldest that is kept."""
        model, out = self.model, self.ffi.new("struct jmk_attached *")
        start = max(FIRST_ID, model.last + 1 - back) if back and mode != CLASSIC else 0
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        largest = self.ffi.new("uint32_t *", 0)
        assert self.lib.jmk_socket_prepare(self.server, theirs.fileno(), largest) == 0
        most = 0 if mode == CLASSIC else largest[0]
        code = self.lib.jmk_server_attach(self.server, theirs.detach(), mode, most, start, out)
        assert code == 0
        assert self.lib.jmk_server_release(self.server, out.key) == 0
        oldest, following = self.ffi.new("uint64_t *"), self.ffi.new("uint64_t *")
        assert self.lib.jmk_server_ids(self.server, oldest, following) == 0
        assert following[0] == model.last + 1
        assert out.first_id == (max(start, oldest[0]) if start else model.last + 1)
        self.peers[out.key] = Peer(ours, out.cursor_fd)
        model.came(out.key, mode, out.first_id)
        self.settle({})

    def choose(self, number: int) -> tuple[Place, Peer]:
        place = self.model.places[number % len(self.model.places)]
        return place, self.peers[place.key]

    @precondition(lambda self: self.model.places)
    @rule(number=st.integers(0, MOST_CLIENTS - 1), part=st.sampled_from([0, 1, 2, 3, 4]))
    def ack(self, number: int, part: int) -> None:
        """One message, half of the limit, all but one, or all that it was sent."""
        model = self.model
        place, peer = self.choose(number)
        half = place.acked + max(1, (self.model.lag(place) + 1) // 2)
        packet_id = [place.acked + 1, half, half - 1, place.sent - 1, place.sent][part]
        packet_id = min(packet_id, place.sent)
        if packet_id <= place.acked:
            return
        if place.mode == SHARED:
            peer.store_ack(packet_id)
        else:
            peer.say(packet_id)
        gap = model.has_acked(place, packet_id)
        self.settle({place.key: gap} if gap else {})

    @precondition(lambda self: any(place.skipping for place in self.model.places))
    @rule(number=st.integers(0, MOST_CLIENTS - 1), back=st.sampled_from([0, 0, 1, 3]))
    def answer(self, number: int, back: int) -> None:
        """One that reads the log says how far it came, so that it can go on."""
        skipped = [place for place in self.model.places if place.skipping and place.mode == SHARED]
        if not skipped:
            return
        place = skipped[number % len(skipped)]
        place.sent = max(place.acked, place.sent - back)
        place.acked = place.sent
        self.peers[place.key].say(place.sent, 0)
        gap = self.model.goes_on(place)
        self.settle({place.key: gap} if gap else {})

    @precondition(lambda self: self.model.places)
    @rule(number=st.integers(0, MOST_CLIENTS - 1))
    def leave(self, number: int) -> None:
        place, peer = self.choose(number)
        self.model.places.remove(place)
        peer.close()
        del self.peers[place.key]
        self.settle({}, left=frozenset({place.key}))

    # ---- time and publishing ----

    @rule(duration=st.sampled_from([1, PATIENCE // 3, PATIENCE * 2 // 3, PATIENCE - 1, PATIENCE]))
    def wait(self, duration: int) -> None:
        self.set_clock(self.model.now + duration)

    @rule(count=st.integers(1, 12))
    def publish(self, count: int) -> None:
        for _ in range(count):
            self.publish_one()

    @precondition(lambda self: 0 < len(self.model.places) < MOST_CLIENTS)
    @rule(
        mode=st.sampled_from([FRAMED, SHARED]),
        back=st.integers(0, 12),
        part=st.sampled_from([0, 1, 4, 4]),
    )
    def come_to_clients_at_their_limit(self, mode: int, back: int, part: int) -> None:
        self.publish_until_refused(80)
        if self.model.places:
            self.come(mode, back)
            self.ack(len(self.model.places) - 1, part)
            self.publish_one()

    @rule(count=st.integers(1, 80))
    def publish_until_refused(self, count: int) -> None:
        for _ in range(count):
            if not self.publish_one():
                break

    @precondition(lambda self: self.model.places)
    @rule(number=st.integers(0, MOST_CLIENTS - 1), times=st.integers(1, 5))
    def trickle(self, number: int, times: int) -> None:
        """One ack shortly before patience ends, and a publisher that tries all the while."""
        for _ in range(times):
            if not self.model.places:
                return
            self.publish_until_refused(80)
            self.wait(PATIENCE - 1)
            if self.model.places:
                self.ack(number, 0)
            self.publish_one()
            self.wait(1)

    def publish_one(self) -> bool:
        model = self.model
        before = {place.key: (place, model.limit_of(place)) for place in model.places}
        fast = [place for place in model.places if model.keeps_up(place)]
        terms = {place.key: place.term for place in model.places}
        passes, given_up = model.attempt()
        assert self.core_publishes() == passes
        for key in given_up:
            place, limit = before[key]
            self.deserves_it(place, limit, terms[key], bool(fast))
        self.settle({}, cut={} if model.policy == "skip" else given_up)
        self.check_the_rule(passes, fast)
        return passes

    def core_publishes(self) -> bool:
        packet_id, holder = self.ffi.new("uint64_t *"), self.ffi.new("struct jmk_account *")
        size = len(self.message)
        code = self.lib.jmk_server_append(self.server, self.message, size, packet_id)
        while code == FULL:
            code = self.lib.jmk_server_wait_room(self.server, size, 0, holder, self.ffi.NULL)
            if code == TIMEOUT and holder.key:
                assert holder.key in {place.key for place in self.model.places}
                return False
            if code == TIMEOUT:
                code = FULL  # the core's thread had the lock just then
                continue
            assert code == 0
            code = self.lib.jmk_server_append(self.server, self.message, size, packet_id)
            assert code == 0
        assert code == 0
        assert packet_id[0] == self.model.last
        return True

    # ---- the rule, once more, as properties ----

    def deserves_it(self, place: Place, limit: str | None, term: Term | None, fast: bool) -> None:
        """It is at its limit beside one at most half way, or has not met a term that is over."""
        model = self.model
        if model.policy != "block" and fast:
            assert limit
            return
        assert model.patience >= 0
        if model.patience == 0:
            assert limit
            return
        if term is None:  # it came to its limit when the publisher had waited for long already
            assert self.refused_since is not None
            assert model.now >= self.refused_since + model.patience
        else:
            assert place.acked < term.due
            since = (
                term.since if self.refused_since is None else min(term.since, self.refused_since)
            )
            assert model.now >= since + model.patience

    def check_the_rule(self, passes: bool, fast: list[Place]) -> None:
        model = self.model
        if passes:
            self.refused_since = None
            return
        assert model.patience != 0
        assert model.places
        assert any(model.limit_of(place) or place.term for place in model.places)
        if model.policy == "block":
            return
        assert not fast
        if self.refused_since is None:
            self.refused_since = model.now
        if model.patience > 0:
            # In all, and not for each client that comes.
            assert model.now < self.refused_since + model.patience

    @invariant()
    def nobody_is_beyond_a_limit(self) -> None:
        for place in self.model.places if self.server else ():
            if not place.skipping:
                assert self.model.lag(place) <= self.model.slots
                if self.model.max_lag:
                    assert self.model.lag(place) <= self.model.max_lag + place.extra

    # ---- what the core says of it ----

    def settle(
        self,
        gaps: dict[int, range],
        cut: dict[int, str] | None = None,
        left: frozenset[int] = frozenset(),
    ) -> None:
        """All the core tells and sends is what the model has."""
        stats = self.make_a_round()
        for place in self.model.places:
            self.model.is_offered(place)
        assert stats.next_id == self.model.last + 1
        assert stats.clients == len(self.model.places)
        self.check_events(gaps, cut or {}, left)
        self.check_accounts()
        self.check_what_was_sent(gaps)

    def check_events(
        self, gaps: dict[int, range], cut: dict[int, str], left: frozenset[int]
    ) -> None:
        event = self.ffi.new("struct jmk_event *")
        said_gaps: dict[int, range] = {}
        said_cut: dict[int, str] = {}
        said_left: set[int] = set()
        while (code := self.lib.jmk_server_next_event(self.server, event)) == 0:
            account = event.account
            if event.kind == EVENT_SKIPPED:
                said_gaps[account.key] = range(account.first_lost, account.last_lost + 1)
            elif event.kind == EVENT_GONE and account.reason == LAGGED:
                said_cut[account.key] = LIMITS[account.limit_kind]
                self.peers.pop(account.key).close()
            elif event.kind == EVENT_GONE:
                assert account.reason == LEFT
                said_left.add(account.key)
        assert code == GONE
        assert (said_gaps, said_cut, frozenset(said_left)) == (gaps, cut, left)

    def check_accounts(self) -> None:
        model = self.model
        accounts = self.ffi.new("struct jmk_account[]", MOST_CLIENTS)
        count = self.ffi.new("size_t *")
        assert self.lib.jmk_server_accounts(self.server, accounts, MOST_CLIENTS, count) == 0
        found = {
            each.key: (each.unacked, each.lag_bytes, each.queued) for each in accounts[0 : count[0]]
        }
        assert found == {
            place.key: (
                place.sent - place.acked,
                0 if place.skipping else model.lag(place) * model.length,
                0 if place.skipping else model.last - place.sent,
            )
            for place in model.places
        }

    def check_what_was_sent(self, gaps: dict[int, range]) -> None:
        for place in self.model.places:
            peer = self.peers[place.key]
            peer.read(place.mode)
            if place.mode == SHARED:
                told = [(RESUME, gaps[place.key].stop)] if place.key in gaps else []
                if place.skipping and peer.told:
                    told = [(SKIP, place.sent)]
                assert [each for each in peer.told if each[0] != RESUME or gaps] == told
            elif peer.messages:
                assert peer.messages[-1] == place.sent
                first = peer.messages[0]
                assert peer.messages == list(range(first, place.sent + 1))
                assert place.key not in gaps or first == gaps[place.key].stop
            peer.messages, peer.told = [], []

    def teardown(self) -> None:
        for peer in self.peers.values():
            peer.close()
        self.lib.set_clock(0)
        if self.server:
            self.lib.jmk_server_close(self.server, 0)
            while self.lib.jmk_server_join(self.server, -1):
                pass
            self.lib.jmk_server_free(self.server)


def test_the_policy_does_what_its_rule_says(core: tuple[Any, Any]) -> None:
    class Here(Policy):
        pass

    Here.core = core
    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=int(os.environ.get("JUMIKS_TEST_EXAMPLES", "200")),
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
