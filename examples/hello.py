# SPDX-License-Identifier: Apache-2.0
"""A server and a client, each in a process of its own."""

from multiprocessing import get_context

import jumiks

ADDRESS = "@jumiks-hello"


def publish() -> None:
    with jumiks.Server(ADDRESS) as server:
        reader = get_context("spawn").Process(target=read)
        reader.start()
        server.wait_for_clients(1, timeout=30)
        for number in range(3):
            server.publish(f"hello {number}".encode())
    reader.join()


def read() -> None:
    with jumiks.Client(ADDRESS) as client:
        for message in client:  # until the server closes
            print(message.decode())


if __name__ == "__main__":
    publish()
