# SPDX-License-Identifier: Apache-2.0
"""The log shared: what only this path has. All else is in the other tests, which use it too."""

import ctypes
import errno
import fcntl
import logging
import mmap
import os
import platform
import random
import select
import signal
from pathlib import Path

import pytest
from cffi import FFI
from support import reference
from support.api import Task, read_to_end, run_script, script_process
from support.base import DEADLINE, DELIVERIES, wait_until
from support.reference import Frame, Message
from support.servers import Server
from support.shared import (
    PAGE,
    SEAL_SEAL,
    hand_made_client,
    info_of,
)
from support.wire import FIRST_ID, Harassed, Witness, raw_client

from jumiks import (
    Batch,
    Client,
    Closed,
    ConnectionLost,
    Delivery,
    EndReason,
    Gap,
    Lagged,
    Overwritten,
    Timeout,
)
from jumiks._server.lag import OnLag

pytestmark = pytest.mark.only_shared

SMALL = 1 << 16
"""Bytes of the smallest log."""


def reopened(fd: int, flags: int) -> int:
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC)


# ---- the memory ----


@pytest.mark.parametrize("again", [False, True], ids=["as it came", "reopened"])
def test_a_client_cannot_write_the_log(address: str, again: bool) -> None:
    with Harassed(address) as harassed, hand_made_client(harassed.server, address) as client:
        harassed.publish()
        fd = reopened(client.log_fd, os.O_RDWR) if again else os.dup(client.log_fd)
        try:
            for at in (64, PAGE + client.offset):
                with pytest.raises(PermissionError):
                    os.pwrite(fd, b"spoiled!", at)
            with pytest.raises(PermissionError):
                mmap.mmap(fd, PAGE + client.size, mmap.MAP_SHARED, mmap.PROT_WRITE)
            # Punching a hole would be writing zeros.
            libc = ctypes.CDLL(None, use_errno=True)
            punch = libc.fallocate(fd, 3, ctypes.c_long(0), ctypes.c_long(PAGE))
            assert (punch, ctypes.get_errno()) == (-1, errno.EPERM)
        finally:
            os.close(fd)


@pytest.mark.parametrize("again", [False, True], ids=["as it came", "reopened"])
def test_a_client_cannot_make_a_map_of_the_log_writable(address: str, again: bool) -> None:
    with Harassed(address) as harassed, hand_made_client(harassed.server, address) as client:
        fd = reopened(client.log_fd, os.O_RDWR) if again else os.dup(client.log_fd)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        size = ctypes.c_size_t(PAGE)
        try:
            at = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, ctypes.c_long(0))
            where = ctypes.c_void_p(at)
            changed = libc.mprotect(where, size, mmap.PROT_READ | mmap.PROT_WRITE)
            assert (changed, ctypes.get_errno()) == (-1, errno.EACCES)
            assert libc.munmap(where, size) == 0
        finally:
            os.close(fd)


@pytest.mark.parametrize("again", [False, True], ids=["as it came", "reopened"])
@pytest.mark.parametrize("what", ["log_fd", "cursor_fd"])
def test_a_client_cannot_shrink_or_grow_what_it_was_given(
    address: str, what: str, again: bool
) -> None:
    with Harassed(address) as harassed, hand_made_client(harassed.server, address) as client:
        given = getattr(client, what)
        fd = reopened(given, os.O_RDWR) if again else os.dup(given)
        try:
            size = os.fstat(fd).st_size
            for other in (0, size - 1, size + 1):
                with pytest.raises(PermissionError):
                    os.ftruncate(fd, other)
            assert os.fstat(given).st_size == size
        finally:
            os.close(fd)


@pytest.mark.parametrize("what", ["log_fd", "cursor_fd"])
def test_a_client_can_add_no_seal(address: str, what: str) -> None:
    with Harassed(address) as harassed, hand_made_client(harassed.server, address) as client:
        fd = getattr(client, what)
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEAL_SEAL
        with pytest.raises(PermissionError):
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_the_log_can_be_read_by_hand_and_acked_by_a_store(address: str) -> None:
    with Harassed(address) as harassed, hand_made_client(harassed.server, address) as client:
        last = harassed.publish(100)
        assert client.read() == harassed.published
        client.ack(last)
        harassed.server.drain(DEADLINE)
        assert not client.has_input()


def overrun(server: Server) -> None:
    """Publish more than the log holds."""
    for _ in range(3 * SMALL // 1000):
        server.publish(bytes(1000))


def is_valid(batch: Batch) -> bool:
    return batch.valid


loses = pytest.mark.parametrize("policy", ["disconnect", "skip"])


def small_server(address: str, policy: OnLag = "disconnect") -> Server:
    return Server(address, log_size=SMALL, on_lag=policy, patience=0)


# ---- views ----


@loses
def test_views_that_the_policy_gave_up_say_so(address: str, policy: OnLag) -> None:
    with small_server(address, policy) as server, Client(address) as client:
        server.publish_many([b"one", b"two"])
        batch = client.receive_many(DEADLINE)
        views = batch.views()
        assert is_valid(batch)
        assert [bytes(view) for view in views] == [b"one", b"two"]
        overrun(server)
        assert not is_valid(batch)
        with pytest.raises(Overwritten) as caught:
            batch.release()
        assert (caught.value.first, caught.value.last) == (FIRST_ID, FIRST_ID + 1)
        with pytest.raises(Overwritten):
            batch[0]


@loses
def test_a_batch_that_the_policy_gave_up_says_so_on_the_first_look(
    address: str, policy: OnLag
) -> None:
    with small_server(address, policy) as server, Client(address) as client:
        server.publish_many([b"one", b"two"])
        batch = client.receive_many(DEADLINE)
        assert is_valid(batch)
        overrun(server)
        assert not is_valid(batch)
        for _ in range(2):
            with pytest.raises(Overwritten):
                batch[0]
        with pytest.raises(Overwritten):
            batch.views()


@loses
def test_the_receive_after_a_batch_was_given_up_says_what_became_of_it(
    address: str, policy: OnLag
) -> None:
    with small_server(address, policy) as server, Client(address) as client:
        server.publish_many([b"one", b"two"])
        batch = client.receive_many(DEADLINE)
        overrun(server)
        with pytest.raises(Overwritten):
            batch[0]
        if policy == "disconnect":
            with pytest.raises(Lagged):
                client.receive(DEADLINE)
            return
        # It answers that it has handled these two, and goes on with the newest.
        assert client.receive(DEADLINE) == bytes(1000)
        newest = server.stats().next_id - 1
        assert client.last_id == newest
        assert client.missed == info_of(server).skipped == newest - FIRST_ID - 2


@loses
def test_a_batch_that_was_looked_at_in_time_stays(address: str, policy: OnLag) -> None:
    with small_server(address, policy) as server, Client(address) as client:
        server.publish_many([b"one", b"two"])
        batch = client.receive_many(DEADLINE)
        assert list(batch) == [b"one", b"two"]
        overrun(server)
        assert is_valid(batch)
        assert list(batch) == [b"one", b"two"]


def test_leaving_the_block_of_a_batch_that_was_given_up_raises(address: str) -> None:
    with small_server(address) as server, Client(address) as client:
        server.publish(b"one")
        with pytest.raises(Overwritten), client.receive_many(DEADLINE) as batch:
            batch.views()
            overrun(server)
        # An error of the block's own is not covered up.
        assert isinstance(batch, Batch)
    with small_server(address) as server, Client(address) as client:
        server.publish(b"one")
        with pytest.raises(KeyError), client.receive_many(DEADLINE) as batch:
            batch.views()
            overrun(server)
            raise KeyError


def test_the_next_receive_takes_views_back(address: str) -> None:
    with Server(address) as server, Client(address) as client:
        server.publish(b"one")
        views = client.receive_many(DEADLINE).views()
        server.publish(b"two")
        assert client.receive(DEADLINE) == b"two"
        with pytest.raises(ValueError, match="released"):
            bytes(views[0])
        assert info_of(server).acked_id == FIRST_ID


@pytest.mark.parametrize("other_thread", [False, True])
def test_a_slice_that_lives_on_holds_acks_back_until_it_goes(
    address: str, other_thread: bool
) -> None:
    with Server(address) as server, Client(address) as client:
        server.wait_for_clients(1, DEADLINE)
        server.publish_many([b"before", b"also before"])
        assert len(client.receive_many(DEADLINE)) == 2
        server.publish(b"pinned")
        held = [client.receive_many(DEADLINE).views()[0][1:]]
        for number in range(1, 11):
            server.publish(b"later")
            assert client.receive(DEADLINE) == b"later"
            client.ack()
            info = info_of(server)
            assert (info.acked_id, info.lag) == (FIRST_ID + 1, 1 + number)
        assert bytes(held[0]) == b"inned"
        if other_thread:
            Task(held.clear).result()
        else:
            held.clear()
        wait_until(lambda: info_of(server).acked_id == FIRST_ID + 12)
        assert info_of(server).lag == 0


def test_pins_let_go_in_any_order(address: str) -> None:
    order = random.Random(7)
    with Server(address) as server, Client(address) as client:
        held = {}
        for number in range(40):
            server.publish(b"%d" % number)
            held[number] = client.receive_many(DEADLINE).views()[0][:]
        with pytest.raises(Timeout):
            client.receive(0)
        while held:
            assert info_of(server).acked_id in (0, FIRST_ID + min(held) - 1)
            number = order.choice(list(held))
            assert held.pop(number) == b"%d" % number
        wait_until(lambda: info_of(server).acked_id == FIRST_ID + 39)


def test_a_slice_outlives_its_client_and_its_server(address: str) -> None:
    with Server(address) as server, Client(address) as client:
        server.publish(b"to be kept")
        kept = client.receive_many(DEADLINE).views()[0][6:]
    del server, client
    assert bytes(kept) == b"kept"


def place_of(view: memoryview) -> tuple[str, int]:
    """The rights of the map of a log that a view's memory is in, and its place in the file."""
    memory = FFI().from_buffer(view)
    at = int(FFI().cast("uintptr_t", memory))
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, rights, offset, *_ = line.split()
        start, end = (int(each, 16) for each in span.split("-"))
        if start <= at < end and "memfd:jumiks" in line:
            return rights, int(offset, 16) + at - start
    raise AssertionError(f"{at:#x} is in no log")


def test_what_is_reserved_and_what_views_show_is_the_same_memory(address: str) -> None:
    with Server(address) as server, Client(address) as client:
        with server.reserve(1000) as memory:
            memory[:] = bytes(range(250)) * 4
            written = place_of(memory)
        with client.receive_many(DEADLINE) as batch:
            (view,) = batch.views()
            assert view == bytes(range(250)) * 4
            assert view.readonly
            read = place_of(view)
            view.release()
    assert (written[0], read[0]) == ("rw-s", "r--s")
    assert read[1] % SMALL == written[1] % SMALL


# ---- the lag policies ----


def test_at_max_lag_a_message_passes_and_one_beyond_cuts(address: str) -> None:
    with Harassed(address, max_lag=10, patience=0) as harassed:
        with hand_made_client(harassed.server, address) as client:
            for _ in range(10):
                harassed.publish()
                harassed.witness.wait_for(len(harassed.published))
            assert len(harassed.server.clients()) == 2
            assert info_of(harassed.server).lag == 10
            harassed.publish()
            assert harassed.reasons(1) == [EndReason.LAGGED]
            *_, last = client.packets()
            bye = reference.decode_bye(Frame(last.id, last.payload, last.kind))
            assert (bye.reason, bye.limit, bye.lag) == (1, 10, 10)
            assert last.id == FIRST_ID + 9


def test_at_max_lag_a_message_passes_and_one_beyond_waits(address: str) -> None:
    with Server(address, max_lag=10, on_lag="block") as server:
        with hand_made_client(server, address) as client:
            for _ in range(10):
                server.publish(b"x", timeout=0)
            for _ in range(3):
                with pytest.raises(Timeout):
                    server.publish(b"x", timeout=0)
            client.ack(FIRST_ID)
            assert server.publish(b"x", timeout=0) == FIRST_ID + 10
            with pytest.raises(Timeout):
                server.publish(b"x", timeout=0)


@pytest.mark.parametrize("told", [False, True])
def test_a_publisher_that_waits_goes_on_after_an_ack(address: str, told: bool) -> None:
    with Server(address, max_lag=10, on_lag="block") as server:
        with hand_made_client(server, address) as client:
            server.publish_many([b"x"] * 10)
            task = Task(lambda: server.publish(b"x"))
            wait_until(lambda: client.cursor[128])
            wanted = client.cursor[128]
            assert FIRST_ID <= wanted <= FIRST_ID + 9
            client.ack(wanted)
            if told:
                client.sock.send(reference.encode_ack(wanted))
            assert task.result() == FIRST_ID + 10


def test_block_waits_for_the_slowest_and_loses_nothing(address: str) -> None:
    with Server(address, max_lag=10, on_lag="block") as server:
        with Witness(address) as fast, Client(address) as slow:
            task = Task(lambda: [server.publish(b"%d" % number) for number in range(500)])
            fast.wait_for(10)
            task.sleeps_in("_publish_slowly")
            assert fast.ids[-1] == FIRST_ID + 9
            assert [slow.receive(DEADLINE) for _ in range(500)] == [b"%d" % n for n in range(500)]
            task.result()
            fast.wait_for(500)
            assert fast.messages == [b"%d" % number for number in range(500)]


def test_skip_tells_the_same_gap_at_both_ends(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    gaps: list[Gap] = []
    caplog.set_level(logging.INFO, "jumiks")
    caplog.set_level(logging.INFO, "jumiks")
    with Harassed(address, max_lag=10, on_lag="skip", patience=0) as harassed:
        with Client(address, on_gap=gaps.append) as client:
            for _ in range(25):
                harassed.publish()
                harassed.witness.wait_for(len(harassed.published))
            # It had read nothing, and what it was offered and reads now still counts as read.
            got = [client.receive(DEADLINE)]
            while not gaps:
                got.append(client.receive(DEADLINE))
            assert got.pop() == harassed.published[-1]
            assert got == harassed.published[: len(got)]
            info = info_of(harassed.server)
            lost = Gap(FIRST_ID + len(got), FIRST_ID + 23)
            assert gaps == [lost]
            assert info.skipped == client.missed == lost.count
    assert f"skipped {lost}" in caplog.text


@pytest.mark.parametrize("delivery", ["shared", "framed"])
def test_a_gap_with_nothing_behind_it_is_told_at_the_end(address: str, delivery: Delivery) -> None:
    with Server(address, max_lag=10, on_lag="skip", patience=0) as server:
        with Witness(address) as witness, Client(address, delivery=delivery) as client:
            server.wait_for_clients(2, DEADLINE)
            for number in range(25):
                server.publish(b"%d" % number)
                witness.wait_for(number + 1)
            server.close()
            got = []
            with pytest.raises(ConnectionLost, match="before this client had received") as caught:
                while True:
                    got.append(client.receive(DEADLINE))
            assert got == witness.messages[: len(got)]
            lost = (caught.value.first_lost, caught.value.last_lost)
            assert lost == (FIRST_ID + len(got), FIRST_ID + 24)
            assert "goodbye" not in str(caught.value)  # it did say one


def test_a_client_that_was_cut_reads_what_is_kept_and_is_told_the_rest(address: str) -> None:
    with Harassed(address, max_lag=10, patience=0) as harassed, Client(address) as client:
        for _ in range(15):
            harassed.publish()
            harassed.witness.wait_for(len(harassed.published))
        messages, end = read_to_end(client)
        assert messages == harassed.published[:10]
        assert isinstance(end, Lagged)
        # Nothing that was published by then is lost, and what came later is kept.
        assert (end.limit, end.first_lost, end.resume_at) == (10, 0, FIRST_ID + 10)


# ---- together with the others ----


def test_a_server_that_does_not_share_sends(address: str) -> None:
    with Server(address, share_log=False) as server, Client(address) as client:
        server.publish(b"sent")
        assert client.receive(DEADLINE) == b"sent"
        assert (client.delivery, info_of(server).delivery) == ("framed", "framed")


def test_a_client_that_does_not_want_to_read_the_log_is_sent_to(address: str) -> None:
    with Server(address) as server, Client(address, delivery="framed") as client:
        server.publish(b"sent")
        assert client.receive(DEADLINE) == b"sent"
        assert (client.delivery, info_of(server).delivery) == ("framed", "framed")


def test_a_classic_client_notices_nothing_of_a_log_that_is_shared(address: str) -> None:
    with Harassed(address) as harassed:
        with raw_client(harassed.server, address, framed=False) as client:
            last = harassed.publish(20)
            expected = [
                Message(FIRST_ID + number, payload)
                for number, payload in enumerate(harassed.published)
            ]
            assert client.read(20) == expected
            client.ack(last)
            harassed.server.drain(DEADLINE)
            assert not harassed.ends


def test_clients_of_all_deliveries_get_the_same_messages(address: str) -> None:
    noise = random.Random(11)
    messages = [noise.randbytes(noise.choice([0, 1, 100, 5000, 40000])) for _ in range(600)]
    with Server(address, on_lag="block", log_size=1 << 20) as server:
        witnesses = [Witness(address, delivery=each) for each in DELIVERIES]
        try:
            deliveries = [witness.client.delivery for witness in witnesses]
            assert deliveries == ["shared", "framed", "classic"]
            assert sorted(info.delivery for info in server.clients()) == sorted(deliveries)
            for start in range(0, 600, 7):
                server.publish_many(messages[start : start + 7], timeout=DEADLINE)
            server.drain(DEADLINE)
            server.close()
            for witness in witnesses:
                witness.wait_for_end()
                assert witness.messages == messages
                assert witness.ids == list(range(FIRST_ID, FIRST_ID + 600))
        finally:
            for witness in witnesses:
                witness.__exit__()


PUBLISHES = """
import sys
import jumiks

server = Server(sys.argv[1])
print("ready", flush=True)
server.wait_for_clients(3)
for number in range(5000):
    server.publish(b"%d" % number)
print("published", flush=True)
sys.stdin.read()
"""


# ---- death, and waiting ----


def test_a_server_that_is_killed_loses_nothing_that_it_had_published(address: str) -> None:
    with script_process(PUBLISHES, address) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with Client(address) as behind, Witness(address) as reading, Client(address) as polling:
            descriptor = select.poll()
            descriptor.register(polling, select.POLLIN)
            assert process.stdout.readline() == "published\n"
            process.send_signal(signal.SIGKILL)
            process.wait(DEADLINE)
            expected = [b"%d" % number for number in range(5000)]
            for client in (behind, polling):
                messages, end = read_to_end(client)
                assert messages == expected
                assert type(end) is ConnectionLost
            assert type(reading.wait_for_end()) is ConnectionLost
            assert reading.messages == expected


OUTRUNS = """
import sys
import jumiks

server = Server(sys.argv[1], log_size=1 << 16, on_lag="skip", patience=0)
print("ready", flush=True)
server.wait_for_clients(1)
for number in range(5000):
    server.publish(b"%d" % number)
print(server.stats().oldest_id, flush=True)
sys.stdin.read()
"""


def test_a_client_that_was_being_skipped_when_the_server_was_killed_reads_what_is_kept(
    address: str,
) -> None:
    gaps: list[Gap] = []
    with script_process(OUTRUNS, address) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with Client(address, on_gap=gaps.append) as client:
            oldest = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
            process.wait(DEADLINE)
            messages, end = read_to_end(client)
            assert type(end) is ConnectionLost
            assert client.last_id == FIRST_ID + 4999
    expected = [b"%d" % number for number in range(5000)]
    (gap,) = gaps
    assert messages == expected[: gap.first - FIRST_ID] + expected[oldest - FIRST_ID :]
    assert gap.last == oldest - 1


def is_readable(client: Client) -> bool:
    return bool(select.select([client], [], [], 0)[0])


def test_the_descriptor_is_readable_for_a_message_and_quiet_once_it_was_taken(
    address: str,
) -> None:
    with Server(address) as server, Client(address) as client:
        for number in range(50):
            with pytest.raises(Timeout):
                client.receive_many(0)
            assert not is_readable(client)
            server.publish(b"%d" % number)
            assert select.select([client], [], [], DEADLINE)[0]
            assert list(client.receive_many(0)) == [b"%d" % number]
            assert not is_readable(client)


def test_the_descriptor_of_a_new_client_is_readable_once_there_is_a_message(address: str) -> None:
    with Server(address) as server, Client(address) as client:
        assert not is_readable(client)
        server.publish(b"one")
        assert select.select([client], [], [], DEADLINE)[0]


@pytest.mark.parametrize("batch", [1, 7])
def test_a_client_that_polls_the_descriptor_misses_nothing(address: str, batch: int) -> None:
    with Server(address, on_lag="block") as server, Client(address) as client:

        def publish() -> None:
            for start in range(0, 10_000, batch):
                server.publish_many([b"%d" % n for n in range(start, min(start + batch, 10_000))])

        task = Task(publish)
        got: list[bytes] = []
        poll = select.poll()
        poll.register(client, select.POLLIN)
        while len(got) < 10_000:
            try:
                got.extend(client.receive_many(0))
            except Timeout:
                assert poll.poll(DEADLINE * 1000), f"nothing came after {len(got)}"
        assert got == [b"%d" % number for number in range(10_000)]
        task.result()


def test_a_client_that_spins_gets_all_and_needs_no_wake_up(address: str) -> None:
    with Server(address) as server, Client(address, spin=DEADLINE) as client:
        for number in range(200):
            task = Task(lambda: client.receive(DEADLINE))
            server.publish(b"%d" % number)
            assert task.result() == b"%d" % number
        # The first sleep is there before it begins to spin.
        assert info_of(server).packets <= 1


def test_a_client_that_spins_keeps_to_its_timeout(address: str) -> None:
    with Server(address), Client(address, spin=60.0) as client:
        with pytest.raises(Timeout):
            client.receive(0.05)


@pytest.mark.parametrize("spin", [0.0, 60.0])
def test_closing_from_another_thread_ends_a_wait(address: str, spin: float) -> None:
    with Server(address) as server, Client(address, spin=spin) as client:
        task = Task(lambda: client.receive())
        server.publish(b"one")
        assert task.result() == b"one"
        task = Task(lambda: client.receive())
        wait_until(lambda: info_of(server).acked_id == FIRST_ID)
        client.close()
        with pytest.raises(Closed):
            task.result()


CALLS = {"x86_64": (0xC000003E, 319, 72), "aarch64": (0xC00000B7, 279, 25)}
"""The machine's audit number, and its numbers of memfd_create and fcntl."""

CONFINED = """
import ctypes, logging, os, struct, sys

address, what = sys.argv[1:3]
audit, memfd_create, fcntl = map(int, sys.argv[3:])
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
number, arch, second = 0, 4, 24  # of struct seccomp_data; the low half of the second argument

if what == "memfd_create":
    program = [
        (LOAD, 0, 0, arch), (EQUAL, 0, 3, audit),
        (LOAD, 0, 0, number), (EQUAL, 0, 1, memfd_create),
        (RETURN, 0, 0, ERRNO | 38), (RETURN, 0, 0, ALLOW),
    ]
else:
    program = [
        (LOAD, 0, 0, arch), (EQUAL, 0, 5, audit),
        (LOAD, 0, 0, number), (EQUAL, 0, 3, fcntl),
        (LOAD, 0, 0, second), (EQUAL, 0, 1, 1033),
        (RETURN, 0, 0, ERRNO | 22), (RETURN, 0, 0, ALLOW),
    ]
code = b"".join(struct.pack("=HBBI", *each) for each in program)
memory = ctypes.create_string_buffer(code)
filter = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(memory)))
libc = ctypes.CDLL(None, use_errno=True)
zero = ctypes.c_ulong(0)
assert libc.prctl(38, ctypes.c_ulong(1), zero, zero, zero) == 0
assert libc.prctl(22, ctypes.c_ulong(2), filter, zero, zero) == 0, os.strerror(ctypes.get_errno())

import jumiks

said = []
handler = logging.Handler()
handler.emit = said.append
logging.getLogger("jumiks").addHandler(handler)
with Server(address, log_size=1 << 16, on_lag="block") as server:
    with jumiks.Client(address) as client, jumiks.Client(address, delivery="classic") as classic:
        for number in range(3000):
            server.publish(b"%d" % number)
            assert client.receive(10) == classic.receive(10) == b"%d" % number
        print(client.delivery, classic.delivery)
warnings = [each.getMessage() for each in said if each.levelno >= logging.WARNING]
print(len(warnings), *warnings)
"""


# ---- a system that cannot share ----


@pytest.mark.parametrize("what", ["memfd_create", "its seals"])
def test_where_the_log_cannot_be_shared_it_is_sent_and_the_log_says_so(
    address: str, what: str
) -> None:
    if platform.machine() not in CALLS:
        pytest.skip(f"the system calls of {platform.machine()} are not known here")
    deliveries, said = run_script(CONFINED, address, what, *CALLS[platform.machine()]).splitlines()
    assert deliveries == "framed classic"
    assert said.startswith("1 ")
    assert "cannot be shared: clients get packets" in said
