# SPDX-License-Identifier: Apache-2.0
"""What serves programs that gevent or eventlet has patched, without either of them."""

import _thread
import sys
import threading
import time
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from support.base import DEADLINE, wait_until

from jumiks import _green

pytestmark = pytest.mark.no_core


def test_a_real_thread_says_whether_it_runs() -> None:
    goes_on, seen = threading.Event(), list[int]()

    def work() -> None:
        seen.append(threading.get_native_id())
        goes_on.wait(DEADLINE)

    thread = _green._RealThread(work)
    assert (thread.native_id, thread.is_alive()) == (None, False)
    thread.start()
    try:
        wait_until(lambda: seen)
        assert thread.native_id == seen[0] != threading.get_native_id()
        thread.join(0.001)
        assert thread.is_alive() is True
    finally:
        goes_on.set()
        thread.join()
    assert thread.is_alive() is False
    thread.join()


def test_a_real_thread_that_cannot_be_started_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("_thread.start_new_thread", refuse)
    thread = _green._RealThread(lambda: None)
    with pytest.raises(RuntimeError):
        thread.start()
    assert thread.is_alive() is False


def fake(name: str, patched: str) -> Any:
    module: Any = ModuleType(name)
    module.is_module_patched = module.is_monkey_patched = lambda asked: asked == patched
    module.get_original = lambda of, what: getattr(sys.modules[of], what)
    module.original = sys.modules.__getitem__
    return module


@pytest.mark.parametrize("name", ["gevent.monkey", "eventlet.patcher"])
def test_what_is_patched_is_known_by_the_package_that_did_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in ("gevent.monkey", "eventlet.patcher"):
        monkeypatch.delitem(sys.modules, each, raising=False)
    assert not _green._patched("select")
    assert _green.original("time", "sleep") is time.sleep
    monkeypatch.setitem(sys.modules, name, fake(name, "select"))
    assert _green._patched("select")
    assert not _green._patched("time")
    assert not _green.cooperates()
    assert _green.original("time", "sleep") is time.sleep
    threads = [_green.new_thread(lambda: None, "one")]
    module = "_thread" if name == "gevent.monkey" else "thread"  # as each of them calls it
    monkeypatch.setitem(sys.modules, name, fake(name, module))
    monkeypatch.setitem(sys.modules, "thread", _thread)
    threads.append(_green.new_thread(lambda: None, "two"))
    assert [type(thread) for thread in threads] == [threading.Thread, _green._RealThread]


def test_pauses_grow_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(_green, "time", SimpleNamespace(sleep=slept.append))
    pauses = _green.Pauses()
    for _ in range(6):
        pauses()
    pauses(0.001)
    pauses(-1.0)
    assert slept == [0.0005, 0.001, 0.002, 0.004, 0.008, 0.01, 0.001, 0.0]
