# SPDX-License-Identifier: Apache-2.0
"""How much of a stream a bridge in begins with, with real engines."""

import asyncio
from collections.abc import Sequence

import pytest
from support.engines import KINDS, RealEngine, running

from jumiks.bridge.engine import Create, make_engine
from jumiks.bridge.record import Record, make_frames

pytestmark = [pytest.mark.slow, pytest.mark.no_core]

FIRST = 100_000
SMALL, LARGE = 1 << 10, 1 << 18


async def counted_back(url: str, sizes: Sequence[int], wanted: int) -> int:
    """Store records of these sizes; return how many of them are read by who wants so many bytes."""
    engine = make_engine(url)
    await engine.open(Create())
    try:
        mark = (await engine.last()).mark
        answers = []
        for seq, size in enumerate(sizes, FIRST):
            record = Record(seq, 1, 1, seq, make_frames(seq, [bytes(size - 16)]))
            answers.append(await engine.append(mark, record))
            mark = engine.after(mark, record)
        await asyncio.gather(*answers)
        start = await engine.back(wanted)
        return FIRST + len(sizes) - max(start, FIRST)
    finally:
        await engine.close()


@pytest.mark.parametrize(
    ("sizes", "wanted", "records"),
    [
        pytest.param([LARGE] * 8 + [SMALL] * 600, 500 * SMALL, 500, id="large ones came first"),
        pytest.param([SMALL] * 600 + [LARGE] * 8, 4 * LARGE, 4, id="small ones came first"),
        pytest.param([SMALL] * 40, 1, 1, id="the last one"),
        pytest.param([SMALL] * 40, 1 << 20, 40, id="more than there is"),
    ],
)
def test_as_many_bytes_as_were_asked_for_whatever_the_records_before_them(
    engine: RealEngine, sizes: list[int], wanted: int, records: int
) -> None:
    assert asyncio.run(counted_back(engine.url, sizes, wanted)) == records


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_without_a_record_begins_at_its_begin(kind: str) -> None:
    with running(kind) as engine:
        assert asyncio.run(counted_back(engine.url, [], 1 << 20)) == 0
