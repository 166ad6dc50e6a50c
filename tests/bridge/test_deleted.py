# SPDX-License-Identifier: Apache-2.0
"""What people do to a stream by hand while bridges use it, with real engines."""

import pytest
from support.base import wait_until
from support.bridges import Inside, Reader, inside, message
from support.engines import RealEngine, running
from support.servers import Server

from jumiks.bridge import Inbound

pytestmark = pytest.mark.slow

FIRST = 100_000


def test_a_last_record_that_somebody_deleted_stops_neither_end(
    engine: RealEngine, address: str
) -> None:
    far = f"{address}-far"
    with Server(address, share_log=True) as source:
        with inside(address, engine.url, far) as (out, _), Reader(far) as reader:
            source.publish_many([message(each) for each in range(10)])
            wait_until(reader.has(10))
            wait_until(lambda: out.stats().outstanding == 0)
            source.publish_many([message(each) for each in range(10, 20)])
            wait_until(reader.has(20))
            wait_until(lambda: out.stats().outstanding == 0)
            engine.delete_last_record(FIRST + 19)
            source.publish_many([message(each) for each in range(20, 30)])
            wait_until(reader.has(30))
            assert reader.numbers == list(range(30))
            with Inside(Inbound(engine.url, f"{far}-2", history=1 << 20, share_log=True)):
                with Reader(f"{far}-2") as late:
                    wait_until(lambda: late.numbers[-1:] == [29])
                    # Unless the bridge out looked in between, and stored them again.
                    assert late.numbers in (list(range(20, 30)), list(range(30)))


def test_a_gap_without_end_of_somebody_else_stops_no_end_once_it_is_removed(
    engine: RealEngine, address: str
) -> None:
    far, count = f"{address}-far", 1 << 62
    with Server(address, share_log=True) as source:
        with inside(address, engine.url, far) as (out, inbound), Reader(far) as reader:
            source.publish_many([message(each) for each in range(10)])
            wait_until(reader.has(10))
            engine.store_gap(FIRST + 10, count, source.server_id)
            source.publish_many([message(each) for each in range(10, 20)])
            wait_until(lambda: out.stats().state == "unfit stream")
            wait_until(lambda: inbound.stats().gaps.get("unreadable"))
            engine.remove_gap(FIRST + 10, count)
            wait_until(reader.has(20))
            assert reader.numbers == list(range(20))
            assert reader.gaps == []


def test_a_consumer_that_somebody_deleted_is_made_anew(address: str) -> None:
    far = f"{address}-far"
    with running("jetstream") as engine, Server(address, share_log=True) as source:
        with inside(address, engine.url, far) as (_, inbound), Reader(far) as reader:
            source.publish_many([message(each) for each in range(10)])
            wait_until(reader.has(10))
            assert engine.delete_consumers() == 1
            source.publish_many([message(each) for each in range(10, 20)])
            wait_until(reader.has(20))
            assert reader.numbers == list(range(20))
            assert reader.gaps == []
            assert inbound.stats().engine_reconnects >= 1
