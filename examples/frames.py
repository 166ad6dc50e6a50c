# SPDX-License-Identifier: Apache-2.0
"""Camera frames of 1 MB: the server writes them in place, and a viewer reads them in place.

`reserve` lends memory in the log, so that a camera driver can write there. `views` show the bytes
without a copy. A viewer that is slow skips frames, and sees the newest ones.
"""

from multiprocessing import get_context

import jumiks

ADDRESS = "@jumiks-frames"
SIZE = 1 << 20
FRAMES = 50


def view() -> None:
    seen = brightest = 0
    with jumiks.Client(ADDRESS) as client:
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
            with server.reserve(SIZE) as frame:  # a driver would fill it here
                frame[0] = frame[-1] = number
    viewer.join()


if __name__ == "__main__":
    main()
