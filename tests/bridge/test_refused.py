# SPDX-License-Identifier: Apache-2.0
"""Engines that have no room or no leader, or have a stream that is none of a bridge's own."""

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from support.base import DEADLINE, wait_until
from support.bridges import Inside, Publisher, Reader, message, same
from support.engines import KINDS, RealEngine, free_port, require, running
from support.servers import Server

from jumiks.bridge import Create, EngineError, Inbound, Outbound
from jumiks.bridge.engine import make_engine

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_engine_is_a_state_and_nothing_is_lost_meanwhile(kind: str, address: str) -> None:
    words = [] if kind == "jetstream" else ["--maxmemory", "3mb"]
    with running(kind, *words) as engine:
        if kind == "jetstream":
            engine.make_stream({"max_bytes": 1 << 20, "discard": "new"})
        with Server(address, share_log=True) as source:
            out = Outbound(address, engine.url, create=Create())
            with Inside(out) as bridge:
                source.publish_many([message(each, 1000) for each in range(4000)])
                wait_until(bridge.is_in("full"))
                assert out.stats().messages < 4000
                assert out.stats().gaps == {}
                engine.make_room()
                wait_until(lambda: out.stats().messages == 4000)
                assert out.stats().gaps == {}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"subjects": ["TICKS", "other"]}, "the subjects TICKS, other"),
        ({"subjects": ["ticks.*"]}, "the subjects ticks."),
        ({"retention": "workqueue"}, "retention is workqueue"),
        ({"no_ack": True}, "no_ack"),
    ],
)
def test_a_stream_that_is_no_feed_s_own_is_refused(
    config: dict[str, object], words: str, address: str
) -> None:
    with running("jetstream") as engine:
        engine.make_stream(config)
        with Inside(Outbound(address, engine.url, create=Create())) as bridge:
            problem = bridge.join()
        assert isinstance(problem, EngineError)
        assert words in str(problem)


@pytest.mark.parametrize("kind", KINDS)
def test_records_of_someone_else_are_no_feed(kind: str, address: str) -> None:
    with running(kind) as engine:
        engine.store_something_else()
        with Inside(Outbound(address, engine.url, create=Create())) as bridge:
            problem = bridge.join()
        assert isinstance(problem, EngineError)


@pytest.mark.parametrize("make", [Outbound, Inbound])
def test_a_stream_that_is_not_there_ends_a_bridge_at_once(
    engine: RealEngine, address: str, make: type[Outbound] | type[Inbound]
) -> None:
    bridge = Outbound(address, engine.url) if make is Outbound else Inbound(engine.url, address)
    with Inside(bridge) as running_bridge:
        problem = running_bridge.join()
    assert "there is no such stream; jumiks bridge out makes it, with --create" in str(problem)


@pytest.mark.parametrize("kind", KINDS)
def test_a_port_where_nothing_listens_is_named(kind: str, tmp_path: Path) -> None:
    engine = RealEngine(kind, tmp_path)  # it is not started
    with pytest.raises(EngineError, match=f"{engine.port}: nothing listens there: ") as error:
        asyncio.run(make_engine(engine.url).open())
    assert error.value.state == "unreachable"


# ---- a cluster


@contextmanager
def cluster() -> Iterator[list[RealEngine]]:
    require("jetstream")
    routes = [free_port() for _ in range(3)]
    urls = ",".join(f"nats://127.0.0.1:{port}" for port in routes)
    with ExitStack() as stack:
        nodes = []
        for number, port in enumerate(routes):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jmk-node-")))
            words = (
                "-n",
                f"node{number}",
                "-cluster_name",
                "three",
                "-cluster",
                f"nats://127.0.0.1:{port}",
                "-routes",
                urls,
            )
            node = RealEngine("jetstream", folder, words)
            stack.callback(node.stop)
            node.start()
            nodes.append(node)
        yield nodes


def test_the_leader_of_a_cluster_is_killed(address: str) -> None:
    far = f"{address}-far"
    with cluster() as nodes, Server(address, share_log=True) as source:
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
        url = f"nats://{hosts}/TICKS"
        out = Outbound(address, url, create=Create(replicas=3))
        inbound = Inbound(url, far, wait=DEADLINE, share_log=True)
        with (
            Inside(out),
            Inside(inbound),
            Reader(far) as reader,
            Publisher(source) as publisher,
        ):
            wait_until(reader.has(1000), 2 * DEADLINE)
            leader = nodes[0].leader_of_stream()
            nodes[leader].stop()
            before = len(reader.numbers)
            wait_until(reader.has(before + 10_000), 2 * DEADLINE)
            nodes[leader].start()
            publisher.stop()
            same(reader, publisher)
            assert reader.gaps == []
