# SPDX-License-Identifier: Apache-2.0
"""Frames of a camera, 1 MB each: written in place by the server, read in place by a viewer.

`reserve` hands out the frame's bytes in the log, so a driver can write there; `views` are the bytes
where they were received. A viewer that is slow skips frames, and sees the newest ones.
"""

from multiprocessing import get_context

import jumiks

ADDRESS = "@jumiks-frames"
SIZE = 1 << 20
FRAMES = 50


def view() -> None:
    seen = brightest = 0
    with jumiks.Client(ADDRESS, arena_size=8 << 20) as client:
        try:
            while True:
                for frame in client.receive_many().views():
                    seen += 1
                    brightest = max(brightest, frame[0], frame[-1])
        except jumiks.ServerClosed:
            print(f"{seen + client.missed} frames, {brightest=}, {SIZE} bytes each")


def main() -> None:
    with jumiks.Server(ADDRESS, log_size=16 * SIZE, on_lag="skip") as server:
        viewer = get_context("spawn").Process(target=view)
        viewer.start()
        server.wait_for_clients(1, timeout=30)
        for number in range(FRAMES):
            with server.reserve(SIZE) as frame:  # here a driver would fill it
                frame[0] = frame[-1] = number
    viewer.join()


if __name__ == "__main__":
    main()
