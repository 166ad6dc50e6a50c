# SPDX-License-Identifier: Apache-2.0
"""docs/scale.md: its example is what the script computes."""

import re
import shlex
from dataclasses import replace

import pytest
from support.base import ROOT

from bench.capacity import Feed, compute, lines, main

pytestmark = pytest.mark.no_core

PAGE = (ROOT / "docs/scale.md").read_text("utf-8")


def test_the_example_is_what_the_command_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (command,) = re.findall(r"^```\npython -m bench\.capacity(.*)\n```$", PAGE, re.MULTILINE)
    (printed,) = re.findall(r"^```text\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL)
    monkeypatch.setattr("sys.argv", ["capacity", *shlex.split(command)])
    main()
    assert capsys.readouterr().out.rstrip("\n") == printed


def test_bytes_are_those_of_the_frames_for_each_reader_and_replica() -> None:
    feed = Feed(rate=1000, size=61, publishes=100, machines=10, replicas=3, engine="redis")
    stream = 1000 * (16 + 64) + 100 * 200
    found = compute(feed)
    assert found["stream"][0] * 1e6 == pytest.approx(stream)
    assert found["into the engine"][0] * 1e6 == pytest.approx(3 * stream)
    assert found["out of the engine"][0] * 1e6 == pytest.approx(10 * stream)
    split = compute(replace(feed, regions=5))
    assert split["out of the engine"][0] * 1e6 == pytest.approx(2 * stream)
    assert split["between regions"][0] * 1e6 == pytest.approx(5 * stream)


def test_records_are_publishes_within_what_is_possible() -> None:
    assert Feed(rate=1000, publishes=100).records == 100
    assert Feed(rate=50, publishes=100).records == 50
    assert Feed(rate=10_000, publishes=10_000).records < 2000  # more than the bridge out can make
    full = Feed(rate=100_000, size=1008, publishes=1)
    assert full.records == full.frames / full.pack


def test_a_link_that_is_no_faster_than_the_stream_never_catches_up() -> None:
    feed = Feed(rate=100_000, size=48)
    assert compute(replace(feed, link=feed.stream))["catching up"][0] == float("inf")
    twice = compute(replace(feed, link=2 * feed.stream, outage=7))
    assert twice["catching up"][0] == pytest.approx(7)
    assert len(lines(feed)) == len(twice)
