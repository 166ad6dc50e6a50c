# SPDX-License-Identifier: Apache-2.0
"""Publish and subscribe of zenoh over a Unix socket.

Congestion control is `BLOCK`, so nothing is dropped. Subscribers are clients of the publisher's
session, so no router stands between, and discovery is off. Messages are taken from the default
channel, which makes the sender wait when it is full. It batches by itself.
"""

import json
import time
from collections.abc import Iterator, Sequence

import zenoh

from bench.work import Work

from . import CHUNK, CONNECT, OneByOne

KEY = "bench/messages"
READY = "bench/ready"


def make_session(mode: str, role: str, path: str) -> zenoh.Session:
    config = zenoh.Config()
    config.insert_json5("mode", json.dumps(mode))
    config.insert_json5(f"{role}/endpoints", json.dumps([f"unixsock-stream/{path}"]))
    if role == "connect":
        config.insert_json5("listen/endpoints", "[]")
    config.insert_json5("scouting/multicast/enabled", "false")
    config.insert_json5("scouting/gossip/enabled", "false")
    return zenoh.open(config)


class Publisher(OneByOne):
    def __init__(self, path: str) -> None:
        self._session = make_session("peer", "listen", path)
        publisher = self._session.declare_publisher(
            KEY, congestion_control=zenoh.CongestionControl.BLOCK
        )
        self.send = publisher.put

    def ready(self, clients: int) -> None:
        # A subscriber declares its token after its subscription, on the same link.
        deadline = time.monotonic() + CONNECT
        while len(list(self._session.liveliness().get(f"{READY}/*"))) < clients:
            if time.monotonic() > deadline:
                raise TimeoutError(f"not all of {clients} subscribers came")
            time.sleep(0.001)

    def close(self) -> None:
        self._session.close()


class Subscriber:
    def __init__(self, path: str) -> None:
        self._session = make_session("client", "connect", path)
        self._subscriber = self._session.declare_subscriber(KEY)
        token = f"{READY}/{self._session.info.zid()}"
        self._token = self._session.liveliness().declare_token(token)

    def messages(self) -> Iterator[bytes]:
        for sample in self._subscriber:
            yield sample.payload.to_bytes()

    def batches(self) -> Iterator[Sequence[bytes]]:
        recv, try_recv = self._subscriber.recv, self._subscriber.try_recv
        while True:
            taken = [recv().payload.to_bytes()]
            while len(taken) < CHUNK and (sample := try_recv()) is not None:
                taken.append(sample.payload.to_bytes())
            yield taken

    def close(self) -> None:
        self._session.close()


def publisher(path: str, work: Work) -> Publisher:  # noqa: ARG001
    return Publisher(path)


def subscriber(path: str, work: Work) -> Subscriber:  # noqa: ARG001
    return Subscriber(path)
