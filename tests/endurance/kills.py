# SPDX-License-Identifier: Apache-2.0
"""SIGKILL at random moments: of clients, of the server, of both.

A server publishes to clients of every kind, plain 1.0 peers among them. Each process notes what it
did in memory that survives it (ledger.py). In every round some of them are killed; a killed client
is replaced by another, a killed server by the next one on the same address, to which those clients
connect that survived it. Then all come to rest, and the notes are compared: nothing lost without a
report, nothing twice, nothing out of order, every payload that of its id, and all that survived got
everything. Nothing may be left: no process, no file, no descriptor, no memory.
"""

import os
import random
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias, cast

from jumiks import (
    Backoff,
    Client,
    ClientInfo,
    ConnectionLost,
    Delivery,
    EndReason,
    Gap,
    Lagged,
    Overwritten,
    Refused,
    Server,
    ServerClosed,
)
from jumiks._server.lag import OnLag
from jumiks._wire.handshake import Status

from .common import (
    FIRST_ID,
    Children,
    Figures,
    Words,
    arguments,
    conclude,
    descriptors_of,
    fresh_address,
    log_mappings_of,
    require,
    status_of,
    wait_for,
)
from .ledger import (
    ACKED,
    COMES_BACK,
    LAST,
    LAST_SERVER,
    NOW,
    OLDEST,
    STATE,
    Check,
    End,
    Ledger,
    Mode,
    Note,
    ServerNotes,
    Why,
    payload,
    server_of,
)

# What the parent tells all.
COMMAND, CURRENT = 0, 1
RUN, PAUSE, MARK, CLOSE = 1, 2, 3, 4
# What each server notes, in a block of its own.
BEGUN, DONE, RANDOM_ID, DOING, PRESENT, CAME, WENT, SKIPPED, POLICY, LAG, SIZE, KEEP = range(12)
BLOCK: Final = 12
POLICIES: Final[Sequence[OnLag]] = ("disconnect", "block", "skip")
CONNECTED: Final = 2
EVENT: Final = 3
EVENTS: Final = 1 << 14

Kind: TypeAlias = tuple[Mode, str, bool]
KINDS: Final[Sequence[Kind]] = (
    (Mode.SHARED, "batches", False),
    (Mode.FRAMED, "batches", False),
    (Mode.SHARED, "singly", True),
    (Mode.FRAMED, "batches", True),
    (Mode.SHARED, "views", False),
    (Mode.SHARED, "singly", False),
    (Mode.CLASSIC, "batches", False),
    (Mode.FRAMED, "singly", False),
    (Mode.SHARED, "batches", True),
    (Mode.PLAIN, "singly", False),
)
"""The clients: what they read, how, and whether the library brings them back to the next server.
The first ones are never killed, to see what becomes of who survives everything."""
SURVIVORS: Final = 4
LOOKS: Final = 60
"""Rounds from which on memory is compared: in the first ones it grows to what is needed."""
SERVER_GROWTH: Final = 256 << 10
CLIENT_GROWTH: Final = 5 << 20
"""Bytes of anonymous memory: none, but for noise; a client's arena is used as far as its largest
batch so far needed, which is 4 MiB at most."""


def block(server: int) -> int:
    """Where a server's words begin."""
    return BLOCK * (server + 1)


# ---- the server ----


class Publisher:
    """A server that publishes in every way there is, and notes what."""

    def __init__(self, words: Words, number: int, events: Words, seed: int) -> None:
        self.words = words
        self.number = number
        self.base = block(number)
        self.events = events
        self.random = random.Random(seed)
        self.next_id = FIRST_ID

    def came(self, info: ClientInfo) -> None:
        self.words[self.base + CAME] += 1

    def went(self, info: ClientInfo, reason: EndReason) -> None:
        place = EVENT * (self.words[self.base + WENT] % EVENTS)
        for index, word in enumerate((info.pid, reason.value, info.acked_id)):
            self.events[place + index] = word
        self.words[self.base + WENT] += 1

    def run(self, address: str, share_log: bool) -> None:
        on_lag = self.random.choice(POLICIES)
        max_lag = self.random.choice([None, 3000, 50_000])
        log_size = self.random.choice([1 << 17, 1 << 20, 8 << 20])
        keep = self.random.choice([0, 0, 500])
        settings = POLICIES.index(on_lag), max_lag or 0, log_size, keep
        for index, setting in zip((POLICY, LAG, SIZE, KEEP), settings, strict=True):
            self.words[self.base + index] = setting
        with Server(
            address,
            on_lag=on_lag,
            max_lag=max_lag,
            log_size=log_size,
            keep=keep,
            share_log=share_log,
            on_connect=self.came,
            on_disconnect=self.went,
        ) as server:
            self.words[self.base + RANDOM_ID] = server.server_id
            while (command := self.words[COMMAND]) != CLOSE:
                if command == RUN:
                    self.publish(server, self.random.choice([1, 1, 1, 5, 50, 200]))
                    if self.random.random() < 0.3:
                        time.sleep(self.random.choice([0.0001, 0.001, 0.003]))
                else:
                    if command == MARK:
                        self.publish(server, 1)
                    self.words[self.base + SKIPPED] = server.stats().skipped
                    self.words[self.base + PRESENT] = len(server.clients())
                    time.sleep(0.001)
                self.words[self.base + DOING] = command
            server.close()
        self.words[self.base + DOING] = CLOSE

    def publish(self, server: Server, count: int) -> None:
        ids = range(self.next_id, self.next_id + count)
        messages = [payload(packet_id, self.number) for packet_id in ids]
        self.words[self.base + BEGUN] = ids[-1]
        if count > 1:
            require(server.publish_many(messages) == ids, "ids out of order")
        elif self.random.random() < 0.7:
            require(server.publish(messages[0]) == ids[0], "id out of order")
        else:
            reservation = server.reserve(len(messages[0]))
            with reservation as view:
                view[:] = messages[0]
            require(reservation.packet_id == ids[0], "id out of order")
        self.next_id = ids[-1] + 1
        self.words[self.base + DONE] = ids[-1]


# ---- the clients ----


class Follower:
    """A client that connects again and again, and notes all that it is handed or told."""

    def __init__(self, address: str, kind: Kind, words: Words, ledger: Ledger, seed: int) -> None:
        self.address = address
        self.mode, self.take, self.comes_back = kind
        self.words = words
        self.ledger = ledger
        self.random = random.Random(seed)
        self.start = self.random.choice([NOW, OLDEST])
        self.early: list[Gap] | None = None

    def run(self) -> None:
        while True:
            self.early = []
            client = self.connect()
            if client is None:
                time.sleep(0.001)
                continue
            self.note_connected(Mode[client.delivery.upper()], client.server_id)
            early, self.early = self.early, None
            for gap in early:
                self.note_gap(gap)
            with client:
                self.receive(client)
            self.ledger.words[STATE] = 0

    def connect(self) -> Client | None:
        """A connection; None if there is no server just now, or it died or closed meanwhile."""
        start = {NOW: "now", OLDEST: "oldest"}.get(self.start, self.start)
        try:
            return Client(
                self.address,
                start=start,  # type: ignore[arg-type]
                delivery=cast(Delivery, self.mode.name.lower()),
                on_gap=self.note_gap,
                reconnect=Backoff(first=0.001, most=0.02) if self.comes_back else False,
            )
        except (ConnectionRefusedError, ConnectionResetError, FileNotFoundError, ConnectionLost):
            return None
        except Refused as refused:
            # The next server may not have got as far as the last one.
            require(refused.status in (Status.START, Status.CLOSING), str(refused))
            if refused.status == Status.START:
                self.start = OLDEST
            return None

    def note_gap(self, gap: Gap) -> None:
        if self.early is not None:
            self.early.append(gap)
        else:
            self.ledger.gap(gap.first, gap.last, Why[gap.reason.name])

    def note_connected(self, mode: Mode, random_id: int) -> None:
        current = self.words[CURRENT]
        begun = self.words[block(current) + BEGUN]
        mode_word = mode | COMES_BACK * self.comes_back
        self.ledger.note(Note.CONNECTED, mode_word, self.start, random_id, current, begun)
        self.ledger.words[ACKED] = 0
        self.ledger.words[STATE] = CONNECTED

    def receive(self, client: Client) -> None:
        """Receive until the end, and note it."""
        take = {"batches": take_batch, "views": take_views, "singly": take_one}[self.take]
        self.start = OLDEST
        try:
            while True:
                try:
                    first, messages = take(client)
                except Overwritten as error:
                    self.ledger.gap(error.first, error.last)
                    continue
                self.note_messages(first, messages)
                chance = self.random.random()
                if chance < 0.2:
                    client.ack()
                    self.ledger.words[ACKED] = client.last_id
                elif chance < 0.2005:
                    # Leave in good order, and go on where it was.
                    self.start = client.last_id + 1
                    self.ledger.note(Note.END, End.LEFT, 0, 0, self.start)
                    return
        except Lagged as end:
            self.start = end.resume_at
            self.ledger.note(Note.END, End.LAGGED, end.first_lost, end.last_lost, end.resume_at)
        except ServerClosed:
            self.ledger.note(Note.END, End.CLOSED)
        except ConnectionLost as end:
            self.ledger.note(Note.END, End.LOST, end.first_lost, end.last_lost)

    def note_messages(self, first: int, messages: Sequence[bytes]) -> None:
        server = server_of(messages[0])
        for packet_id, message in enumerate(messages, first):
            if message != payload(packet_id, server):
                self.ledger.note(Note.WRONG, packet_id)
        self.ledger.got(first, first + len(messages) - 1, server)

    def run_plain(self) -> None:
        """The same as a plain 1.0 peer does it."""
        where = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        while True:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
                with suppress(ConnectionError, FileNotFoundError):
                    peer.connect(where)
                    if len(peer.recv(6)) == 6:
                        peer.send(b"\1\0\0\0\0\0")
                        self.start = NOW
                        self.note_connected(Mode.PLAIN, 0)
                        self.receive_plain(peer)
                        self.ledger.note(Note.END, End.LOST)
            self.ledger.words[STATE] = 0
            time.sleep(0.001)

    def receive_plain(self, peer: socket.socket) -> None:
        last = 0
        while True:
            try:
                packet = peer.recv(1 << 17)
            except ConnectionResetError:
                continue  # it closed before it had read all acks; what it sent is still there
            if not packet:
                return
            packet_id = int.from_bytes(packet[:8], "little")
            if last and packet_id > last + 1:
                self.ledger.gap(last + 1, packet_id - 1)
            last = packet_id
            self.note_messages(packet_id, [packet[8:]])
            with suppress(BrokenPipeError, ConnectionResetError):
                peer.send(packet[:8])
                self.ledger.words[ACKED] = packet_id


def take_batch(client: Client) -> tuple[int, list[bytes]]:
    batch = client.receive_many()
    return batch.first_id, list(batch)


def take_views(client: Client) -> tuple[int, list[bytes]]:
    with client.receive_many() as batch:
        copies = [bytes(view) for view in batch.views()]
        batch.release()  # raises where they were overwritten meanwhile
    return batch.first_id, copies


def take_one(client: Client) -> tuple[int, list[bytes]]:
    message = client.receive()
    return client.last_id, [message]


# ---- the run ----


@dataclass
class Living:
    """A client process, the check of its notes, and what it had when it first came to rest."""

    kind: Kind
    process: int
    ledger: Ledger
    check: Check
    has: tuple[int, int] | None = None


class Kills:
    """One server at a time, its clients, and round after round."""

    def __init__(
        self, children: Children, address: str, rounds: int, share_log: bool, seed: int
    ) -> None:
        self.children = children
        self.address = address
        self.share_log = share_log
        self.random = random.Random(seed)
        self.words = Words(BLOCK * (6 * rounds + 4))
        self.servers: dict[int, ServerNotes] = {}
        self.events = Words(EVENT * EVENTS)
        self.counts = {
            "clients killed": 0,
            "servers killed": 0,
            "of them while closing": 0,
            "servers": 0,
        }
        self.told: dict[str, int] = {}
        self.rests: list[str] = []
        self.extra: int | None = None  # descriptors of a server beyond one a client
        self.memory: dict[int, list[int]] = {}
        self.dead: list[Living] = []
        self.number = 0
        self.server = 0
        self.words[COMMAND] = RUN
        self.start_server()
        self.living = [self.start_client(kind) for kind in KINDS]

    # -- coming and going --

    def start_server(self) -> None:
        self.number += 1
        self.counts["servers"] += 1
        self.events = Words(EVENT * EVENTS)
        self.servers[self.number] = ServerNotes()
        self.words[CURRENT] = self.number
        seed = self.random.randrange(1 << 30)
        publisher = Publisher(self.words, self.number, self.events, seed)
        self.server = self.children.fork(partial(publisher.run, self.address, self.share_log))

    def start_client(self, kind: Kind) -> Living:
        ledger = Ledger()
        mode, take, comes_back = kind
        seed = self.random.randrange(1 << 30)
        follower = Follower(self.address, kind, self.words, ledger, seed)
        work: Callable[[], object] = follower.run_plain if mode == Mode.PLAIN else follower.run
        process = self.children.fork(work)
        back = ", which comes back" * comes_back
        name = f"{take} of {mode.name}{back}, process {process}"
        return Living(kind, process, ledger, Check(ledger, name))

    def kill_server(self) -> None:
        closing = self.random.random() < 0.2
        if closing:
            self.words[COMMAND] = CLOSE
            time.sleep(self.random.uniform(0, 0.004))
            self.counts["of them while closing"] += 1
        self.children.kill(self.server)
        self.read_server()
        self.servers[self.number].alive = False
        self.counts["servers killed"] += 1
        self.words[COMMAND] = RUN
        time.sleep(self.random.choice([0, 0, 0.002, 0.01]))
        self.start_server()

    def kill_client(self) -> None:
        place = self.random.randrange(SURVIVORS, len(self.living))
        victim = self.living[place]
        self.children.kill(victim.process)
        self.counts["clients killed"] += 1
        self.read_server()
        self.finish_check(victim)
        self.dead.append(victim)
        time.sleep(self.random.choice([0, 0, 0.001, 0.005]))
        self.living[place] = self.start_client(victim.kind)

    def read_server(self) -> None:
        base, notes = block(self.number), self.servers[self.number]
        # What it had done before what it had begun: the other way round it might have gone on.
        notes.done = self.words[base + DONE]
        notes.begun = self.words[base + BEGUN]
        notes.random_id = self.words[base + RANDOM_ID]
        notes.skipped = self.words[base + SKIPPED]
        policy, *sizes = self.words.read(base + POLICY, 4)
        notes.settings = "{}, max_lag {}, log_size {}, keep {}".format(POLICIES[policy], *sizes)

    # -- a round --

    def round(self, server_kills: float) -> None:
        """Kill some, let all come to rest, and compare."""
        for _ in range(self.random.choice([1, 1, 2, 3])):
            time.sleep(self.random.uniform(0, 0.02))
            if self.random.random() < server_kills:
                self.kill_server()
            else:
                self.kill_client()
        self.come_to_rest()
        for each in self.living:
            each.check.go_on(self.servers)
            self.check_possessions(each)
        self.check_server()
        for each in self.living:
            self.check_cuts(each)
        self.words[COMMAND] = RUN

    def come_to_rest(self) -> None:
        """Until everybody is connected to this server, and has its last message."""
        base = block(self.number)
        self.words[COMMAND] = PAUSE
        self.wait_doing(PAUSE)
        first = self.words[base + DONE] + 1
        self.words[COMMAND] = MARK

        def reached(last: int) -> bool:
            return all(
                each.ledger.words[LAST_SERVER] == self.number
                and each.ledger.words[STATE] == CONNECTED
                and each.ledger.words[LAST] >= last
                for each in self.living
            )

        self.wait(lambda: reached(first), "everybody to get a message after the kills")
        self.words[COMMAND] = PAUSE
        self.wait_doing(PAUSE)
        if POLICIES[self.words[base + POLICY]] == "skip":
            # A gap with nothing behind it is told by the next message, and that one may be skipped.
            self.wait(
                lambda: reached(self.words[base + DONE]) or self.mark_again(), "the end of all gaps"
            )
        self.wait(lambda: reached(self.words[base + DONE]), "everybody to get the last message")
        self.read_server()

    def mark_again(self) -> bool:
        """Publish a message or a few more, and give everybody time to get them; False."""
        self.words[COMMAND] = MARK
        self.wait_doing(MARK)
        self.words[COMMAND] = PAUSE
        self.wait_doing(PAUSE)
        time.sleep(0.1)
        return False

    def wait_doing(self, what: int) -> None:
        doing = block(self.number) + DOING
        self.words[doing] = 0
        self.wait(lambda: self.words[doing] == what, "the server to pause")

    def wait(self, condition: Callable[[], object], what: str) -> None:
        def holds() -> bool:
            if condition():
                return True
            self.children.check()
            return False

        try:
            wait_for(holds, what)
        except Exception as error:
            states = [(each.check.name, each.ledger.words.read(0, 5)) for each in self.living]
            error.add_note(f"server {self.words.read(block(self.number), BLOCK)}; {states}")
            raise

    # -- checks --

    def finish_check(self, dead: Living) -> None:
        dead.check.go_on(self.servers)
        for name, count in dead.check.counts.items():
            self.told[name] = self.told.get(name, 0) + count
        if dead.check.last_rest:
            self.rests.append(dead.check.last_rest)

    def check_acks(self, dead: Living) -> None:
        """What the server believes to be handled was handed out, and at least what was acked."""
        notes, number = dead.ledger.words, self.number
        if notes[LAST_SERVER] != number:
            return
        ends = self.ends_of(dead)
        if not ends or ends[-1][0] != EndReason.LEFT.value or notes[STATE] != CONNECTED:
            return
        acked = ends[-1][1]
        # Acks that are in a socket when its peer dies may stay unread; a page has no such place.
        least = notes[ACKED] if dead.check.mode == Mode.SHARED else 0
        require(
            least <= acked <= notes[LAST],
            f"{dead.check.name}: {acked} counts as acked, where {notes[ACKED]} was acked and "
            f"{notes[LAST]} handed out",
        )

    def ends_of(self, each: Living) -> list[list[int]]:
        """How its connections to this server ended, as that saw it: reason and last id acked."""
        count = self.words[block(self.number) + WENT]
        require(count < EVENTS, f"there is no room for the events of {count} ends")
        events = [self.events.read(EVENT * index, EVENT) for index in range(count)]
        return [[reason, acked] for process, reason, acked in events if process == each.process]

    def check_cuts(self, each: Living) -> None:
        """Plain 1.0 has no words for a cut, nor for a gap, but the server knows of each."""
        cuts = [reason for reason, _ in self.ends_of(each) if reason == EndReason.LAGGED.value]
        silent = each.check.cut_in_silence.get(self.number, 0)
        require(
            silent <= len(cuts),
            f"{each.check.name}: cut off {silent} times, of which the server knows {len(cuts)}",
        )
        jumped, skipped = each.check.jumped.get(self.number, 0), self.servers[self.number].skipped
        require(
            jumped <= skipped,
            f"{each.check.name}: {jumped} messages are lost, and {skipped} were skipped by all",
        )

    def check_possessions(self, each: Living) -> None:
        has = len(descriptors_of(each.process)), log_mappings_of(each.process)
        each.has = each.has or has
        require(
            has == each.has,
            f"{each.check.name}: descriptors and mappings grew from {each.has} to {has}: "
            f"{descriptors_of(each.process)}",
        )

    def check_server(self) -> None:
        base = block(self.number)
        present = len(self.living)
        # Who is gone may still be on its way out.
        self.wait(lambda: self.words[base + PRESENT] == present, "the dead to be noticed")
        self.wait(
            lambda: self.words[base + CAME] - self.words[base + WENT] == present,
            "as many to be told of as gone as had come",
        )
        while self.dead:
            self.check_acks(self.dead.pop())
        # Descriptors of those that shook hands when they died go last.
        extra = self.extra

        def settled() -> bool:
            return extra is None or len(descriptors_of(self.server)) - present == extra

        self.wait(settled, f"the server to have {extra} descriptors and one a client again")
        self.extra = len(descriptors_of(self.server)) - present

    def look_at_memory(self) -> None:
        """Note the memory of those that survive."""
        for process in (self.server, *(each.process for each in self.living[:SURVIVORS])):
            self.memory.setdefault(process, []).append(status_of(process)["RssAnon"])

    def growth(self, processes: Sequence[int]) -> int:
        """The most that any of them gained, from the middle third of its looks to the last."""
        most = 0
        for process in processes:
            samples = self.memory[process]
            third = len(samples) // 3
            if len(samples) >= LOOKS:
                middle, end = samples[third : 2 * third], samples[-third:]
                most = max(most, int(statistics.median(end) - statistics.median(middle)))
        return most

    def check_growth(self, figures: Figures) -> None:
        """Servers and clients that survived many rounds must not have grown."""
        survivors = [each.process for each in self.living[:SURVIVORS]]
        servers = [process for process in self.memory if process not in survivors]
        for name, processes, limit in (
            ("a server", servers, SERVER_GROWTH),
            ("a client", survivors, CLIENT_GROWTH),
        ):
            grown = self.growth(processes)
            figures[f"growth of {name}, bytes"] = grown
            require(grown < limit, f"{name}'s memory grew by {grown} bytes")

    def finish(self) -> None:
        """Close in good order; all clients must have got everything then."""
        self.come_to_rest()
        self.words[COMMAND] = CLOSE
        self.children.end(self.server)
        self.read_server()
        done = self.servers[self.number].done
        for each in self.living:
            words = each.ledger.words
            # One that comes back waits for the next server then.
            at_end = done if each.kind[2] else -1
            self.wait(
                partial(lambda words, end: words[STATE] == 0 or words[LAST] == end, words, at_end),
                f"the goodbye of {each.check.name}",
            )
            self.children.kill(each.process)
            self.servers[self.number].alive = each.check.mode not in (Mode.CLASSIC, Mode.PLAIN)
            self.finish_check(each)


def check_nothing_left(address: str) -> None:
    """No process, and no file."""
    stat = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    require(not stat, f"processes are left: {stat}")
    if not address.startswith("@"):
        left = os.listdir(Path(address).parent)
        require(not left, f"files are left: {left}")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--share-log", type=int, choices=[0, 1], default=1)
    parser.add_argument("--address", choices=["abstract", "path"], default="path")
    parser.add_argument(
        "--server-kills", type=float, default=0.35, help="part of the kills that hit the server"
    )
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    def run(figures: Figures) -> None:
        with fresh_address(options.address) as address:
            with Children() as children:
                kills = Kills(
                    children, address, options.rounds, bool(options.share_log), options.seed
                )
                try:
                    for done in range(options.rounds):
                        figures["rounds"] = done
                        kills.round(options.server_kills)
                        kills.look_at_memory()
                    figures["rounds"] = options.rounds
                    kills.finish()
                finally:
                    figures |= kills.counts | kills.told | {"rests": kills.rests}
            check_nothing_left(address)
        kills.check_growth(figures)

    words = "the log shared" if options.share_log else "packets"
    conclude(f"kills, {words}", run, options.json)


if __name__ == "__main__":
    main()
