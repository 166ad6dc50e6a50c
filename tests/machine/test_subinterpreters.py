# SPDX-License-Identifier: Apache-2.0
"""Servers where Python itself allows no thread, and modules in interpreters beside the main one."""

import sys
import threading

import pytest
from support.api import run_script
from support.servers import Server

from jumiks import Client

SCRIPT = """
import os, sys
for name in [name for name in os.environ if name.startswith("COVERAGE_")]:
    del os.environ[name]  # it does not load in an interpreter beside the main one
module = __import__("_xxsubinterpreters" if sys.version_info < (3, 13) else "_interpreters")
run = module.run_string if sys.version_info < (3, 13) else module.exec
if sys.version_info < (3, 13):
    interpreter = module.create(isolated=ISOLATED)
else:
    interpreter = module.create("isolated" if ISOLATED else "legacy")
run(interpreter, '''
import gc, os, time
try:
    import jumiks
    before = os.listdir("/proc/self/fd")
    with jumiks.Server(ADDRESS) as server, jumiks.Client(ADDRESS) as client:
        server.publish(b"passed")
        print(client.receive(10).decode())
except Exception as error:
    print(type(error).__name__, error)
gc.collect()
deadline = time.monotonic() + 10
while "jumiks" in globals() and os.listdir("/proc/self/fd") != before:
    assert time.monotonic() < deadline
''')
module.destroy(interpreter)
"""


def run_in_interpreter(address: str, isolated: bool) -> str:
    script = SCRIPT.replace("ISOLATED", repr(isolated)).replace("ADDRESS", repr(address))
    return run_script("import warnings; warnings.simplefilter('ignore')\n" + script)


def test_an_isolated_interpreter_says_why_there_is_no_server(address: str) -> None:
    said = run_in_interpreter(address, isolated=True)
    if sys.version_info < (3, 12):
        assert said == (
            "RuntimeError cannot start the server's thread: thread is not supported for isolated "
            "subinterpreters: make the server in the main interpreter, before it shuts down\n"
        )
    else:
        assert said.startswith("ImportError ")
        assert "does not support loading in subinterpreters" in said


@pytest.mark.skipif(
    not getattr(sys, "_is_gil_enabled", lambda: True)(),
    reason="Python 3.14t has a cffi that loads in no subinterpreter",
)
def test_an_interpreter_that_shares_the_lock_has_servers_and_clients(address: str) -> None:
    assert run_in_interpreter(address, isolated=False) == "passed\n"


def test_a_thread_that_python_refuses_is_no_shortage(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="thread: can't create new thread at interpreter"):
            Server(address)
    with Server(address) as server, Client(address) as client:
        server.publish(b"then")
        assert client.receive(10) == b"then"
