# SPDX-License-Identifier: Apache-2.0
"""The ends of one run, in processes of their own; harness.py starts them and reads what they print.

    python -m bench.worker publisher|subscribers CONTESTANT PATH WORK

WORK is a `Work` as JSON. A publisher prints "listening", waits for a line, publishes it all, prints
its figures as JSON, and stays until its input is closed. The subscribers' parent imports what they
need and waits for a line; then each subscriber is a fork of it that connects by itself. It prints
their process ids, waits for another line, and prints the figures of all. A subscriber is through
once it has got as many messages as were published, or the rest is lost.
"""

import gc
import json
import os
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeAlias

from . import adapters
from .adapters import CONTESTANTS, Contestant
from .work import QUANTILES, Checker, Work, cycle_length, cycle_of, last_cycle

Figures: TypeAlias = dict[str, float]


# ---- the publishing end ----


def publish_cycles(publisher: adapters.Publisher, work: Work, most: int) -> int:
    """Publish for as long as the work says; returns how many it were."""
    publish = publisher.send_many if work.batched else publisher.send_each
    cycle, last = cycle_of(work.size), last_cycle(work.size, 0)
    deadline = time.monotonic() + work.seconds
    done, until = 0, work.messages or most
    while done + len(last) < until and (work.messages or time.monotonic() < deadline):
        publish(cycle)
        done += len(cycle)
    publish(last_cycle(work.size, done))
    return done + len(last)


def publish_paced(publisher: adapters.Publisher, work: Work) -> int:
    """Each message tells when it was sent. Deadlines are absolute, so delays do not add up."""
    send, stamp, now = publisher.send, struct.Struct("<QQ"), time.monotonic_ns
    # The kernel's default would let each sleep last 50 us longer.
    Path("/proc/self/timerslack_ns").write_text("1")
    filler, gap = bytes(work.size - stamp.size), 1e9 / work.pace if work.pace else 0.0
    begin = now()
    for number in range(work.messages):
        left = begin + number * gap - now()
        if gap and left > 0:
            time.sleep(left / 1e9)
        send(stamp.pack(now(), number) + filler)
    return work.messages


def cpu_of(processes: Sequence[int]) -> float:
    """Seconds of CPU of this process and of others (proc_pid_stat(5))."""
    ticks = 0
    for process in processes:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def publisher_end(contestant: Contestant, path: str, work: Work) -> None:
    adapter = adapters.load(contestant.module)
    publisher = adapter.publisher(path, work, **contestant.publisher)
    print(json.dumps([os.getpid(), *publisher.processes]), flush=True)
    sys.stdin.readline()
    publisher.ready(work.clients)
    gc.disable()
    cpu, begin = cpu_of(publisher.processes), time.monotonic_ns()
    if work.latency:
        count = publish_paced(publisher, work)
    else:
        count = publish_cycles(publisher, work, contestant.most(work))
    print(json.dumps({"begin": begin, "count": count}), flush=True)
    sys.stdin.read()
    # Read after the last message was delivered: threads of the publisher may have sent it.
    print(json.dumps({"cpu": cpu_of(publisher.processes) - cpu}), flush=True)
    publisher.close()


# ---- the receiving ends ----


def chunks(messages: Iterator[bytes], size: int) -> Iterator[list[bytes]]:
    """Iterate as a user would, and keep what is to be checked. Ends with what was published."""
    most = cycle_length(size)
    while True:
        taken: list[bytes] = []
        keep = taken.append
        for message in islice(messages, most):
            keep(message)
        if not taken:
            return
        yield taken


def receive_all(subscriber: adapters.Subscriber | adapters.LoopSubscriber, work: Work) -> Figures:
    checker, end, now = Checker(work.size), 0, time.monotonic_ns

    def take(batch: Sequence[bytes]) -> bool:
        nonlocal end
        end = now()
        checker.take(batch)
        return checker.done

    cpu = time.process_time()
    if isinstance(subscriber, adapters.LoopSubscriber):
        subscriber.drive(work, take)
    else:
        receive = subscriber.batches() if work.batched else chunks(subscriber.messages(), work.size)
        for batch in receive:
            if take(batch):
                break
    cpu = time.process_time() - cpu
    return {"count": checker.count, "wrong": checker.wrong, "end": end, "cpu": cpu}


def receive_paced(subscriber: adapters.Subscriber, work: Work) -> Figures:
    stamp, now = struct.Struct("<QQ").unpack_from, time.monotonic_ns
    samples: list[float] = []
    wrong, due = 0, 0
    cpu = time.process_time()
    for message in subscriber.messages():
        arrived = now()
        sent, number = stamp(message)
        samples.append((arrived - sent) / 1000)
        wrong += number < due
        due = number + 1
        if due == work.messages:
            break
    cpu = time.process_time() - cpu
    figures: Figures = {"count": len(samples), "wrong": wrong, "end": now(), "cpu": cpu}
    samples = sorted(samples[len(samples) // 20 :])  # the first ones find cold caches
    for part in QUANTILES if samples else ():
        place = min(len(samples) - 1, int(len(samples) * part / 100))
        figures[f"p{part:g}"] = samples[place]
    return figures


def one_subscriber(
    contestant: Contestant, path: str, work: Work, connected: Callable[[], object]
) -> Figures:
    adapter = adapters.load(contestant.module)
    subscriber = adapter.subscriber(path, work, **contestant.subscriber)
    connected()
    gc.disable()
    if work.latency:
        assert not isinstance(subscriber, adapters.LoopSubscriber)
        figures = receive_paced(subscriber, work)
    else:
        figures = receive_all(subscriber, work)
    subscriber.close()
    return figures


def fork(work: Callable[[], object]) -> int:
    """Do that in a fork of this process."""
    process = os.fork()
    if process:
        return process
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def subscriber_ends(contestant: Contestant, path: str, work: Work) -> None:
    adapters.load(contestant.module)
    print("loaded", flush=True)
    sys.stdin.readline()
    connected, tell_connected = os.pipe()
    result, tell_result = os.pipe()
    go, tell_go = os.pipe()

    def wait_to_go() -> None:
        os.write(tell_connected, b".")
        os.read(go, 1)

    def subscribe() -> None:
        os.close(tell_go)
        figures = one_subscriber(contestant, path, work, wait_to_go)
        # Less than PIPE_BUF, so lines do not mix.
        os.write(tell_result, json.dumps(figures).encode() + b"\n")

    processes = [fork(subscribe) for _ in range(work.clients)]
    os.close(tell_connected)
    os.close(tell_result)
    count = 0
    while count < work.clients:
        some = os.read(connected, work.clients)
        if not some:
            sys.exit("a subscriber did not connect")
        count += len(some)
    print(json.dumps(processes), flush=True)
    sys.stdin.readline()
    os.close(tell_go)
    with os.fdopen(result) as lines:
        print(json.dumps([json.loads(line) for line in lines]), flush=True)


def main() -> None:
    role, name, path, work = sys.argv[1:]
    end = {"publisher": publisher_end, "subscribers": subscriber_ends}[role]
    end(CONTESTANTS[name], path, Work(**json.loads(work)))


if __name__ == "__main__":
    main()
