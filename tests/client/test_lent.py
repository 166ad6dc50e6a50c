# SPDX-License-Identifier: Apache-2.0
"""What is lent, or shared with a child, a thread or a loop, is never wrong in silence."""

from __future__ import annotations

import array
import asyncio
import importlib
import threading
from contextlib import suppress
from typing import Any

import pytest
from support.api import Task, run_script
from support.base import DEADLINE
from support.servers import Server

import jumiks
from jumiks import AsyncClient, Batch, Client, Delivery

np: Any = None
with suppress(ImportError):
    np = importlib.import_module("numpy")  # here, as it starts threads

SIZE = 1 << 14
POLICIES: list[dict[str, Any]] = [
    {"on_lag": "skip", "patience": 0},
    {"on_lag": "disconnect", "patience": 0},
]


def overwrite(server: Server) -> None:
    for number in range(1, 12):
        server.publish(bytes([number]) * SIZE)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy["on_lag"])
@pytest.mark.parametrize("delivery", ["shared", "framed"])
@pytest.mark.parametrize("moment", ["nothing", "next receive", "release", "close"])
def test_a_batch_is_never_valid_once_what_views_show_has_changed(
    address: str, policy: dict[str, Any], delivery: Delivery, moment: str
) -> None:
    with (
        Server(address, log_size=1 << 17, **policy) as server,
        Client(address, delivery=delivery) as client,
    ):
        server.publish(bytes(SIZE))
        batch = client.receive_many(DEADLINE)
        part = batch.views()[0][:8]
        assert batch.valid
        if moment == "next receive":
            server.publish(bytes([255]) * SIZE)
            client.receive_many(DEADLINE)
        elif moment == "release":
            batch.release()
        elif moment == "close":
            client.close()
        assert batch.valid
        overwrite(server)
        assert batch.valid == (bytes(part) == bytes(8))
        if client.delivery == "framed":
            assert batch.valid
        else:
            assert not batch.valid
        del part
        assert batch.valid == (client.delivery == "framed")


def test_views_of_a_shared_log_are_released_by_close(address: str) -> None:
    with Server(address) as server, Client(address) as client:
        server.publish(b"message")
        (view,) = client.receive_many(DEADLINE).views()
        client.close()
        if client.delivery == "shared":
            with pytest.raises(ValueError, match="released"):
                bytes(view)
        else:
            assert bytes(view) == b"message"


def test_a_receive_waits_until_close_has_copied_the_last_batch(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, go_on = threading.Event(), threading.Event()
    settle = Batch._settle

    def slow(batch: Batch) -> None:
        inside.set()
        go_on.wait(DEADLINE)
        settle(batch)

    monkeypatch.setattr(Batch, "_settle", slow)
    with Server(address) as server, Client(address, delivery="framed") as client:
        server.publish_many([b"A" * 500] * 10)
        batch = client.receive_many(DEADLINE)
        settling = Task(client._stream.prepare)  # as `close` does
        assert inside.wait(DEADLINE)
        server.publish_many([b"B" * 500] * 10)
        receiving = Task(lambda: client.receive_many(DEADLINE))
        receiving.sleeps_in("_settle_batch")
        go_on.set()
        settling.result()
        assert list(receiving.result()) == [b"B" * 500] * 10
        assert list(batch) == [b"A" * 500] * 10


FORKS = """
import os, sys
address = sys.argv[1]
with Server(address) as server, jumiks.Client(address) as client:
    server.publish_many([b"message"] * 100)
    got, child, outcome = 0, None, "the end"
    try:
        for _ in client:
            got += 1
            if child is None:
                child = os.fork()
                if child:
                    os.waitpid(child, 0)
                    break
    except jumiks.Forked:
        outcome = "Forked"
    if child == 0:
        print(got, outcome, flush=True)
        os._exit(0)
"""


def test_a_child_forked_in_a_loop_gets_nothing_of_the_batch_of_its_parent(address: str) -> None:
    assert run_script(FORKS, address).split() == ["1", "Forked"]


def test_a_client_in_a_second_event_loop_says_so(address: str) -> None:
    with Server(address):
        client = AsyncClient(address)

        async def receive() -> None:
            await client.receive(DEADLINE)

        async def begin() -> None:
            await client

        asyncio.run(begin())
        with pytest.raises(jumiks.JumiksError, match="another event loop"):
            asyncio.run(receive())
        asyncio.run(client.close())


def test_a_buffer_in_columns_is_a_buffer_error(address: str) -> None:
    if np is None:
        pytest.skip("numpy is not installed")
    with Server(address) as server:
        for wrong in (np.zeros((4, 4), order="F"), np.zeros((4, 4))[:, ::2]):
            with pytest.raises(BufferError, match="not contiguous in memory: copy it"):
                server.publish(wrong)
            with pytest.raises(BufferError, match="message 1 of the sequence is not contiguous"):
                server.publish_many([b"", wrong])
        assert server.publish(array.array("d", [1.0]))
