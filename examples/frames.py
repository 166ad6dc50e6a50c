# SPDX-License-Identifier: Apache-2.0
"""Camera frames as numpy arrays: the camera writes them in place, and viewers read them in place.

Each message is what `numpy.save` would write: a short header with shape and dtype, then the pixels.
So images of all kinds may come one after another, and a message that is written to a file is one
for `numpy.load`. A viewer that is slow skips frames, and is never more than `MAX_LAG` behind.
"""

import functools
import io
from multiprocessing import get_context

import numpy as np
from numpy.lib import format as npy

import jumiks

ADDRESS = "@jumiks-frames"
SHAPE = (480, 640, 3)
FRAMES = 50
MAX_LAG = 2
HEAD_ROOM = 256
"""Bytes of a message that the header of an image is within; numpy pads it to 128."""


@functools.lru_cache
def header(shape: tuple[int, ...], dtype: str) -> bytes:
    """Return what stands before the pixels."""
    out = io.BytesIO()
    about = {"descr": npy.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(out, about)
    return out.getvalue()


@functools.lru_cache
def layout(head: bytes) -> tuple[int, tuple[int, ...], np.dtype]:
    """Return where the pixels begin, their shape and their dtype."""
    file = io.BytesIO(head)
    if npy.read_magic(file) != (1, 0):
        raise ValueError("this is no image of version 1.0 of numpy's format")
    shape, is_fortran, dtype = npy.read_array_header_1_0(file)
    if dtype.hasobject or is_fortran:
        raise ValueError(f"this is no image, but {dtype} in Fortran's order: {is_fortran}")
    return file.tell(), shape, dtype


def image_of(message: memoryview) -> np.ndarray:
    """Return the image of a message, not copied."""
    size = 10 + int.from_bytes(message[8:10], "little")
    offset, shape, dtype = layout(bytes(message[: min(size, HEAD_ROOM)]))
    return np.ndarray(shape, dtype, message, offset)


def publish(server: jumiks.Server, number: int) -> None:
    """Write an image into the log: a driver would fill it there."""
    head = header(SHAPE, "|u1")
    with server.reserve(len(head) + int(np.prod(SHAPE))) as view:
        view[: len(head)] = head
        image = np.ndarray(SHAPE, np.uint8, view, len(head))
        image[...] = number
        del image  # else the block's end copies what it shows


def newest_brightness(batch: jumiks.Batch) -> int:
    """Look at the newest frame of a batch; 0 if this viewer was skipped while it looked."""
    try:
        with batch:
            image = image_of(batch.views()[-1])
            brightness = int(image.max())
            assert image.shape == SHAPE
            del image  # while it lives, the frames are not acked
            return brightness if batch.valid else 0
    except (jumiks.Overwritten, ValueError, AssertionError):
        if batch.valid:
            raise
        return 0  # the camera has written over what it looked at


def view() -> None:
    """Look at the newest frame of each batch; frames as large as these come one by one."""
    seen = brightest = 0
    with jumiks.Client(ADDRESS) as client:
        try:
            while True:
                batch = client.receive_many()
                seen += len(batch)
                brightest = max(brightest, newest_brightness(batch))
        except jumiks.ServerClosed:
            print(f"{seen + client.missed} frames, {brightest=}")


def main() -> None:
    """Publish frames to one viewer."""
    with jumiks.Server(
        ADDRESS,
        log_size=32 << 20,
        max_lag=MAX_LAG,
        on_lag="skip",
        patience=0,  # the camera waits for no viewer
    ) as server:
        viewer = get_context("spawn").Process(target=view)
        viewer.start()
        server.wait_for_clients(1, timeout=60)
        for number in range(FRAMES):
            publish(server, number)
        server.drain(timeout=60)  # a viewer that was skipped gets the last frame
    viewer.join()


if __name__ == "__main__":
    main()
