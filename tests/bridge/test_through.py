# SPDX-License-Identifier: Apache-2.0
"""A feed through an engine and back: the ledgers of source and far reader are equal."""

import pytest
from support.base import DEADLINE, wait_until
from support.bridges import Bridge, Inside, Publisher, Reader, both, inside, message, same
from support.engines import RealEngine
from support.servers import Server

from jumiks.bridge import Create, Inbound, Outbound

pytestmark = pytest.mark.slow


def test_what_is_published_here_arrives_there_with_its_ids(
    engine: RealEngine, address: str
) -> None:
    with Server(address, share_log=True) as source:
        first = source.publish(message(0))
        with both(address, engine.url, f"{address}-far"), Reader(f"{address}-far") as far:
            source.publish_many([message(each) for each in range(1, 5000)])
            wait_until(far.has(5000))
            assert far.numbers == list(range(5000))
            assert far.gaps == []
            assert far.last_id == first + 4999


def other(leg: str, source: str, url: str, far: str) -> Outbound | Inbound:
    """The bridge that is not killed."""
    if leg == "in":
        return Outbound(source, url, create=Create())
    # It may look before there is a stream, and again much later: then all must still be there.
    return Inbound(url, far, history=1 << 25, wait=DEADLINE, share_log=True)


@pytest.mark.parametrize("leg", ["out", "in"])
def test_a_bridge_is_killed_at_any_moment(engine: RealEngine, address: str, leg: str) -> None:
    far_address = f"{address}-far"
    words = {
        "out": (address, engine.url, "--create"),
        "in": (engine.url, far_address, "--wait", f"{DEADLINE:g}"),
    }
    one = Bridge(leg, *words[leg])
    with Server(address, share_log=True) as source, Publisher(source) as publisher:
        with one, Inside(other(leg, address, engine.url, far_address)), Reader(far_address) as far:
            for _ in range(2):
                before = len(far.numbers)
                wait_until(far.has(before + 1000))
                one.stop(terminate=False)
                one.start()
            before = len(far.numbers)
            wait_until(far.has(before + 1000))
            publisher.stop()
            same(far, publisher)
            assert far.gaps == []


def test_the_engine_is_killed_and_comes_back(engine: RealEngine, address: str) -> None:
    far_address = f"{address}-far"
    with Server(address, share_log=True) as source, Publisher(source) as publisher:
        with inside(address, engine.url, far_address), Reader(far_address) as far:
            wait_until(far.has(1000))
            engine.stop()
            engine.start()
            before = len(far.numbers)
            wait_until(far.has(before + 1000))
            publisher.stop()
            same(far, publisher)
            assert far.gaps == []
