# SPDX-License-Identifier: Apache-2.0
"""The programs of docs/recipes.md; those in examples/ are in test_examples.py."""

import re
import subprocess
import sys
from contextlib import suppress

import pytest
from support.base import DEADLINE, ROOT, needs
from support.servers import Server

from jumiks import Client

with suppress(ImportError):
    import numpy as np

PAGE = (ROOT / "docs/recipes.md").read_text("utf-8")
IMAGES, TYPED = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@needs("msgspec")
def test_typed_messages_come_back_as_what_they_were(address: str) -> None:
    program = TYPED.replace("@recipe", address)
    words = [sys.executable, "-W", "error", "-c", program]
    assert subprocess.check_output(words, text=True, timeout=DEADLINE).splitlines() == [
        "Quote(time=1, symbol='ACME', bid=100.25, ask=100.5)",
        "Quote(time=2, symbol='HOOLI', bid=7.5, ask=8.0)",
    ]


@needs("numpy")
@pytest.mark.usefixtures("large_log")
def test_images_of_one_shape_are_one_array(address: str) -> None:
    images = np.arange(3, dtype=np.uint8).repeat(480 * 640 * 3).reshape(3, 480, 640, 3)
    program = IMAGES.replace("    del images", "    found.append(images.copy())\n    del images")
    found: list[np.ndarray] = []
    with Server(address) as server, Client(address) as client:
        server.publish_many(images)
        while sum(map(len, found)) < len(images):
            exec(program, {"np": np, "client": client, "found": found})
    assert np.array_equal(np.concatenate(found), images)
