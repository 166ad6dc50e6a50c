# SPDX-License-Identifier: Apache-2.0
"""Records of the standard library's logging, published and handed on."""

import asyncio
import json
import logging
import logging.handlers
import multiprocessing
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from support.api import SMALL_LOG, Task
from support.base import DEADLINE, wait_until
from support.command import command
from support.servers import Server

from jumiks import Client, Monitor, Refused
from jumiks._client.link import Delivery
from jumiks._wire.handshake import FIRST_ID
from jumiks.logging import Handler, Listener, record_from_json, record_to_json


class Kept(logging.Handler):
    """Keeps the records that it is handed."""

    def __init__(self, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def kept() -> Kept:
    return Kept()


@contextmanager
def logger_of(handler: logging.Handler) -> Iterator[logging.Logger]:
    logger = logging.Logger("app.part", logging.DEBUG)
    logger.addHandler(handler)
    yield logger
    logger.removeHandler(handler)


def made(message: str = "hello %s", *args: object, **extra: object) -> logging.LogRecord:
    record = logging.LogRecord("app", logging.WARNING, "/a/b.py", 7, message, args, None, "work")
    vars(record).update(extra)
    return record


# ---- records ----


def test_a_record_keeps_what_local_handlers_use() -> None:
    try:
        raise KeyError("lost")
    except KeyError:
        record = logging.LogRecord("app", 40, "/a/b.py", 7, "at %d", (3,), sys.exc_info(), "work")
    record.user = "u"  # as `extra` does
    form = logging.Formatter(
        "%(asctime)s %(name)s %(levelname)s %(filename)s:%(lineno)d %(user)s %(message)s"
    )
    again = record_from_json(record_to_json(record))
    assert form.format(again) == form.format(record)
    assert "KeyError: 'lost'" in form.format(again)


@pytest.mark.parametrize("value", [object(), {1, 2}, b"raw", "\ud800", {(1, 2): 3}])
def test_what_json_does_not_know_does_not_stop_a_record(value: object) -> None:
    again = record_from_json(record_to_json(made("hello", thing=value)))
    assert again.getMessage() == "hello"


def test_percent_signs_of_a_message_are_not_arguments() -> None:
    assert (
        record_from_json(record_to_json(made("100 %% of %s", "it"))).getMessage() == "100 % of it"
    )


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"3", b"{", b"\xff", b"{}", b'{"msg": 3}', b"[" * 100_000]
)
def test_what_is_no_record_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="no record: "):
        record_from_json(data)


@pytest.mark.parametrize(
    "hostile",
    [
        {"getMessage": "x"},
        {"args": [1]},
        {"exc_info": True},
        {"levelno": "high"},
        {"levelno": True},
        {"created": 1e300},
        {"created": "now"},
        {"name": None},
        {"exc_text": 3},
        {"stack_info": []},
        {"__class__": "x"},
        {"lineno": [1]},
    ],
)
def test_a_hostile_record_can_be_handled(hostile: dict[str, object]) -> None:
    found = json.loads(record_to_json(made("hello"))) | hostile
    record = record_from_json(json.dumps(found).encode())
    text = logging.Formatter("%(asctime)s %(name)s %(levelno)d %(lineno)d %(message)s").format(
        record
    )
    assert text.endswith("hello")
    assert not logging.Filter("other").filter(record)


# ---- the handler ----


def test_records_arrive_in_order_at_each_listener(address: str, kept: Kept) -> None:
    other = Kept()
    with Server(address) as server, Listener(address, kept), Listener(address, other):
        server.wait_for_clients(2, DEADLINE)
        with logger_of(Handler(server)) as logger:
            for number in range(100):
                logger.info("number %d", number)
        wait_until(lambda: len(kept.records) == len(other.records) == 100)
    for each in (kept, other):
        assert [r.getMessage() for r in each.records] == [f"number {n}" for n in range(100)]
        assert {r.name for r in each.records} == {"app.part"}


def test_a_handler_never_waits_and_counts_what_it_dropped(address: str) -> None:
    with Server(address, on_lag="block", max_lag=2, log_size=SMALL_LOG) as server:
        with Client(address), logger_of(handler := Handler(server)) as logger:
            began = time.monotonic()
            for number in range(1000):
                logger.info("number %d", number)
            assert time.monotonic() - began < DEADLINE
            assert handler.dropped == 1000 - server.stats().published > 0


def drop_three(server: Server, handler: Handler, logger: logging.Logger, slow: Client) -> None:
    """Log until three more records were dropped, and make room again."""
    before = handler.dropped
    while handler.dropped < before + 3:
        logger.info("one of many")
    while slow.last_id < server.stats().published + 99_999:
        slow.receive(DEADLINE)
    slow.ack()
    server.drain(DEADLINE)


TOLD = "records were lost: 3 were not published"


def test_listeners_are_told_what_was_dropped_ahead_of_the_next_record(
    address: str, kept: Kept
) -> None:
    with Server(address, on_lag="block", max_lag=5) as server, Client(address) as slow:
        with Listener(address, kept) as listener, logger_of(handler := Handler(server)) as logger:
            server.wait_for_clients(2, DEADLINE)
            for lost in (3, 6):
                drop_three(server, handler, logger, slow)
                assert listener.lost == lost - 3
                logger.info("last")
                wait_until(lambda: kept.records[-1].getMessage() == "last")
                told = kept.records.pop(-2)
                assert (told.name, told.levelno) == ("jumiks.logging", logging.WARNING)
                assert told.getMessage() == TOLD
                assert listener.lost == handler.dropped == lost
                kept.records.pop()
            assert {record.name for record in kept.records} == {"app.part"}


def test_a_flush_tells_what_was_dropped_once(address: str, kept: Kept) -> None:
    with Server(address, on_lag="block", max_lag=5) as server, Client(address) as slow:
        with Listener(address, kept) as listener, logger_of(handler := Handler(server)) as logger:
            server.wait_for_clients(2, DEADLINE)
            drop_three(server, handler, logger, slow)
            for _ in range(2):
                handler.flush()
            logger.info("last")
            wait_until(lambda: kept.records[-1].getMessage() == "last")
            assert [r.getMessage() for r in kept.records].count(TOLD) == 1
            assert listener.lost == 3


@pytest.mark.parametrize("count", [-1, True, "3", 1.5, None])
def test_a_hostile_count_of_dropped_records_is_no_number_of_ours(
    address: str, kept: Kept, count: object
) -> None:
    listener = Listener(address, kept)
    record = made("hello")
    vars(record).update(name="jumiks.logging", dropped=count)
    listener._take(record_to_json(record))
    assert (listener.lost, len(kept.records)) == (0, 1)


def test_listeners_are_told_that_a_record_was_too_large(address: str, kept: Kept) -> None:
    with Server(address, max_message=4096, log_size=SMALL_LOG) as server:
        with Listener(address, kept) as listener, logger_of(Handler(server)) as logger:
            server.wait_for_clients(1, DEADLINE)
            for text in ("x" * 5000, "small", "small"):
                logger.info(text)
    told = "records were lost: 1 were not published, 1 of those as larger than max_message, "
    assert [r.getMessage() for r in kept.records] == [f"{told}4096 bytes", "small", "small"]
    assert listener.lost == 1


@pytest.mark.parametrize("what", ["too large", "closed", "reserved"])
def test_a_record_that_cannot_be_published_is_dropped(
    address: str, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Server(address, max_message=4096, log_size=SMALL_LOG) as server:
        with logger_of(handler := Handler(server)) as logger:
            if what == "too large":
                logger.info("x" * 5000)
            elif what == "closed":
                server.close()
                logger.info("x")
            else:
                with server.reserve(8):
                    logger.info("x")
            assert handler.dropped == 1
    assert capsys.readouterr().err == ""


def test_what_jumiks_logs_while_a_record_is_published_is_dropped(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(address) as server, logger_of(handler := Handler(server)) as logger:
        publish = server.publish

        def loud(data: bytes, timeout: float | None = None) -> int:
            logger.info("from within")
            return publish(data, timeout)

        monkeypatch.setattr(server, "publish", loud)
        logger.info("once")
        assert handler.dropped == 1
        assert server.stats().published == 1


def test_a_server_may_publish_what_it_logs_of_its_clients(address: str, kept: Kept) -> None:
    jumiks = logging.getLogger("jumiks")
    with Server(address) as server, Listener(address, kept):
        server.wait_for_clients(1, DEADLINE)
        jumiks.addHandler(handler := Handler(server))
        level = jumiks.level
        jumiks.setLevel(logging.DEBUG)
        try:
            with Client(address):
                pass
            wait_until(lambda: any(r.name == "jumiks" for r in kept.records))
        finally:
            jumiks.setLevel(level)
            jumiks.removeHandler(handler)


def test_a_record_that_cannot_be_formatted_is_told_as_logging_does(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Server(address) as server, logger_of(handler := Handler(server)) as logger:
        logger.info("%d", "no number")
        assert handler.dropped == 1
    assert "Logging error" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["@name", None, 3])
def test_a_handler_takes_a_server(wrong: object) -> None:
    with pytest.raises(TypeError, match=r"server=.*: it must be a jumiks\.Server"):
        Handler(wrong)  # type: ignore[arg-type]


def test_threads_log_at_the_same_time(address: str, kept: Kept) -> None:
    with Server(address) as server, Listener(address, kept):
        server.wait_for_clients(1, DEADLINE)
        with logger_of(Handler(server)) as logger:

            def work() -> None:
                for _ in range(200):
                    logger.info("x")

            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        wait_until(lambda: len(kept.records) == 800)


def test_asyncio_logs_without_waiting(address: str, kept: Kept) -> None:
    async def work(logger: logging.Logger) -> None:
        logger.info("from a task")
        await asyncio.sleep(0)

    with Server(address) as server, Listener(address, kept):
        server.wait_for_clients(1, DEADLINE)
        with logger_of(Handler(server)) as logger:
            asyncio.run(work(logger))
        wait_until(lambda: bool(kept.records))
    assert kept.records[0].getMessage() == "from a task"


# ---- processes ----


def test_a_forked_child_drops_its_records(address: str) -> None:
    with Server(address) as server, logger_of(handler := Handler(server)) as logger:
        child = os.fork()
        if child == 0:
            logger.info("from the child")
            os._exit(handler.dropped)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
        assert handler.dropped == 0
        assert server.stats().published == 0


def test_children_log_through_a_queue_of_their_parent(address: str, kept: Kept) -> None:
    """As the handler's documentation says."""
    context = multiprocessing.get_context("fork")
    records = context.Queue()
    with Server(address) as server, Listener(address, kept):
        server.wait_for_clients(1, DEADLINE)
        hand_on = logging.handlers.QueueListener(records, Handler(server))
        worker = context.Process(target=log_in_a_worker, args=(records,))
        worker.start()
        hand_on.start()
        worker.join(DEADLINE)
        wait_until(lambda: len(kept.records) == 3)
        hand_on.stop()
    assert {r.process for r in kept.records} == {worker.pid}
    records.close()


def log_in_a_worker(records: "multiprocessing.Queue[logging.LogRecord]") -> None:
    with logger_of(logging.handlers.QueueHandler(records)) as logger:
        for number in range(3):
            logger.warning("number %d", number)


# ---- the listener ----


def test_a_listener_waits_for_its_server_and_comes_back(address: str, kept: Kept) -> None:
    with Listener(address, kept) as listener:
        for _ in range(2):
            with Server(address) as server:
                server.wait_for_clients(1, DEADLINE)
                with logger_of(Handler(server)) as logger:
                    logger.info("hello")
                server.drain(DEADLINE)
        wait_until(lambda: [r.getMessage() for r in kept.records].count("hello") == 2)
    assert listener.error is None


def test_a_listener_stops_while_nobody_serves(address: str) -> None:
    with Listener(address) as listener:
        pass
    listener.stop()
    listener.start()
    with pytest.raises(RuntimeError, match="was started already"):
        listener.start()
    listener.close()
    listener.close()
    assert [thread for thread in threading.enumerate() if thread.name == "jumiks-listener"] == []


def test_a_gap_is_a_record(address: str, kept: Kept) -> None:
    stuck, go_on = threading.Event(), threading.Event()

    class Stuck(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            stuck.set()
            assert go_on.wait(DEADLINE)

    with Server(address, on_lag="skip", max_lag=4, patience=0) as server:
        with Listener(address, Stuck(), kept) as listener, Client(address):
            server.wait_for_clients(2, DEADLINE)
            with logger_of(Handler(server)) as logger:
                logger.info("first")
                assert stuck.wait(DEADLINE)
                for number in range(100):
                    logger.info("number %d", number)
                go_on.set()
                wait_until(lambda: listener.lost > 0)
                logger.info("last")
                wait_until(lambda: kept.records[-1].getMessage() == "last")
    told = [r for r in kept.records if r.name == "jumiks.logging"]
    assert told
    assert all(r.levelno == logging.WARNING for r in told)
    assert "records were lost: messages" in told[0].getMessage()
    assert len(kept.records) - len(told) + listener.lost == 102


def test_messages_that_are_no_records_are_counted(address: str, kept: Kept) -> None:
    with Server(address) as server, Listener(address, kept) as listener:
        server.wait_for_clients(1, DEADLINE)
        server.publish_many([b"\x00", b"[]", record_to_json(made("hello"))])
        wait_until(lambda: len(kept.records) == 2)
        assert listener.unreadable == 2
    told = kept.records[0]
    assert (told.name, told.levelno) == ("jumiks.logging", logging.WARNING)
    assert told.getMessage().startswith(f"{address} publishes something else than log records: ")


def test_a_handler_gets_its_level_only_if_it_is_asked_for(address: str) -> None:
    high, low = Kept(logging.ERROR), Kept()
    listener = Listener(address, high, low, respect_handler_level=True)
    listener.handle(made())
    assert (len(high.records), len(low.records)) == (0, 1)
    Listener(address, high).handle(made())
    assert len(high.records) == 1


def test_a_handler_that_raises_does_not_end_a_listener(
    address: str, kept: Kept, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            raise OSError("broken")

    Listener(address, Broken(), kept).handle(made("hello", queue.Queue()))
    assert len(kept.records) == 1
    assert "broken" in capsys.readouterr().err


def test_what_ends_a_listener_is_told(address: str, kept: Kept) -> None:
    with Server(address, allow=lambda peer: False), Listener(address, kept) as listener:
        wait_until(lambda: listener.error is not None)
    assert isinstance(listener.error, Refused)
    said = kept.records[0].getMessage()
    assert said.startswith(f"no more records come from {address}: ")
    assert said.endswith("call stop() and start() of the Listener to try again")


class Gate(Kept):
    """Holds up what it is handed until it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        assert self.opened.wait(DEADLINE)

    def texts(self) -> list[str]:
        return [record.getMessage() for record in self.records]


@contextmanager
def stopping(listener: Listener, gate: Gate) -> Iterator[Task[None]]:
    """Stop a listener whose handler is held up, and let that go on at the end."""
    task = Task(listener.stop)
    try:
        wait_until(lambda: listener._stopping)
        yield task
    finally:
        gate.opened.set()
    task.result()


@pytest.mark.parametrize("delivery", ["shared", "framed", "classic"])
def test_a_stop_hands_on_what_was_published_before_and_no_more(
    address: str, delivery: Delivery
) -> None:
    gate = Gate()
    with Server(address, max_lag=1000) as server:
        listener = Listener(address, gate, options={"delivery": delivery})
        listener.start()
        server.wait_for_clients(1, DEADLINE)
        with logger_of(Handler(server)) as logger:
            for number in range(500):
                logger.info("%d", number)
            wait_until(lambda: gate.records)
            with stopping(listener, gate):
                for _ in range(500):
                    logger.info("later")
        assert gate.texts() == [str(number) for number in range(500)]
        assert (listener.lost, listener.error) == (0, None)


def test_a_stop_hands_on_what_a_server_published_that_is_gone(address: str) -> None:
    gate = Gate()
    listener = Listener(address, gate)
    with Server(address) as server:
        listener.start()
        server.wait_for_clients(1, DEADLINE)
        with logger_of(Handler(server)) as logger:
            for number in range(500):
                logger.info("%d", number)
        wait_until(lambda: gate.records)
        server.close(linger=0)
    with stopping(listener, gate):
        pass
    assert len(gate.records) + listener.lost == 500 + (listener.lost > 0)


@pytest.mark.parametrize("delivery", ["shared", "framed", "classic"])
def test_a_stop_ends_while_the_server_hangs(address: str, delivery: Delivery) -> None:
    gate = Gate()
    with command("serve", address, "--wait", 1) as serve:
        assert serve.stdin is not None
        listener = Listener(address, gate, options={"delivery": delivery})
        listener.start()
        for _ in range(3):
            serve.stdin.write(record_to_json(made("x")) + b"\n")
        serve.stdin.flush()
        wait_until(lambda: gate.records)
        with Monitor(address) as monitor:
            figure = "published" if delivery == "shared" else "delivered"
            wait_until(lambda: getattr(monitor.status().stats, figure) == 3)
        serve.send_signal(signal.SIGSTOP)
        with stopping(listener, gate):
            pass
    assert len(gate.records) == 3
    assert (listener.lost, listener.error) == (0, None)


def test_what_a_stop_cannot_get_is_lost(
    address: str, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(address) as server:
        with Listener(address, kept, options={"delivery": "framed"}) as listener:
            server.wait_for_clients(1, DEADLINE)
            first = server.stats().next_id
            monkeypatch.setattr(
                listener,
                "_set_end",
                lambda client: vars(listener).update(_end=(client.server_id, first + 2)),
            )
    assert listener.lost == 3
    assert "3 that were published before the stop did not come" in kept.records[-1].getMessage()


def test_a_listener_that_was_cut_comes_back_and_tells_what_it_missed(address: str) -> None:
    gate = Gate()
    with Server(address, max_lag=4, patience=0, log_size=SMALL_LOG) as server:
        with Listener(address, gate) as listener, logger_of(Handler(server)) as logger:
            server.wait_for_clients(1, DEADLINE)
            logger.info("first")
            wait_until(lambda: gate.records)
            while server.stats().oldest_id < FIRST_ID + 10:
                logger.info("x" * 1000)
            wait_until(lambda: not server.clients())
            gate.opened.set()
            server.wait_for_clients(1, DEADLINE)
            logger.info("last")
            wait_until(lambda: gate.texts()[-1] == "last")
            told = [r.getMessage() for r in gate.records if r.name == "jumiks.logging"]
            assert told[0].startswith(f"{address} cut this listener, which was ")
            assert any(text.startswith("records were lost: messages ") for text in told)
            got = sum(r.name != "jumiks.logging" for r in gate.records)
            assert got + listener.lost == server.stats().published
            assert listener.error is None


def test_wrong_arguments_of_a_listener_are_found_at_once(address: str) -> None:
    with pytest.raises(TypeError, match=r"'stderr' is no logging\.Handler"):
        Listener(address, "stderr")  # type: ignore[arg-type]


@pytest.mark.no_core
@pytest.mark.parametrize(
    ("where", "options", "kind", "text"),
    [
        ("logs", {}, ValueError, "write '@logs' for an abstract address"),
        (3, {}, TypeError, "an address is '@name' or a path"),
        ("@x", {"foo": 1}, TypeError, "Client has no option 'foo'; its options: "),
        ("@x", {"names": "a"}, TypeError, "did you mean 'name'"),
        ("@x", {"max_lag": 1}, TypeError, "it is one of the server"),
        ("@x", {"reconnect": False}, TypeError, "leave 'reconnect' out, which a Listener sets"),
        ("@x", {"wait": 5}, TypeError, "leave 'wait' out, which a Listener sets"),
        ("@x", {"on_gap": None}, TypeError, "leave 'on_gap' out, which a Listener sets"),
        ("@x", {"timeout": -1}, ValueError, "timeout"),
        ("@x", {"start": "first"}, ValueError, "start='first'"),
        ("@x", {"ack": "manual"}, ValueError, "so the server would cut this"),
    ],
)
def test_wrong_addresses_and_options_of_a_listener_are_found_at_once(
    where: Any, options: Any, kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text):
        Listener(where, options=options)


def test_a_listener_takes_no_socket() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as bound:
        bound.bind("")
        with pytest.raises(TypeError, match="is for a server"):
            Listener(bound)  # type: ignore[arg-type]


def test_a_listener_s_options_are_its_client_s(address: str, kept: Kept) -> None:
    with Server(address, keep=10) as server:
        server.publish(record_to_json(made("early")))
        with Listener(address, kept, options={"start": "oldest", "name": "watcher"}):
            wait_until(lambda: bool(kept.records))
            assert [info.name for info in server.clients()] == ["watcher"]
