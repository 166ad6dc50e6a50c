# SPDX-License-Identifier: Apache-2.0
import pytest

from jumiks.bridge.life import Backoff

pytestmark = pytest.mark.no_core


@pytest.mark.parametrize(("chance", "share"), [(0.0, 0.5), (0.5, 0.75)])
def test_waits_double_up_to_two_seconds_and_begin_anew(
    monkeypatch: pytest.MonkeyPatch, chance: float, share: float
) -> None:
    monkeypatch.setattr("random.random", lambda: chance)
    backoff = Backoff()
    waits = [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    for _ in range(2):
        assert [backoff.next() for _ in waits] == pytest.approx([share * wait for wait in waits])
        backoff.reset()
