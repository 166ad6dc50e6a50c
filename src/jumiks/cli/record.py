# SPDX-License-Identifier: Apache-2.0
"""`jumiks record` and `jumiks replay`: a feed in an MCAP file, and back; see docs/recording.md."""

from __future__ import annotations

import argparse
import os
import signal
import time
from math import inf
from pathlib import Path
from types import FrameType

from jumiks._gap import in_words
from jumiks._server.returning import Returning, not_back
from jumiks._wire.handshake import FIRST_ID
from jumiks.client import Client
from jumiks.errors import JumiksError, MessageTooLarge, Timeout, counted
from jumiks.recording import End, Lost, Pack, Reader, Recorder
from jumiks.recording.file import check_seekable, needed
from jumiks.server import Server

from .serve import make_server, say_if_nobody_heard, signals_held
from .streams import say

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Record until the server closes, or replay a file."""
    needed()
    try:
        return _record(options) if options.command_name == "record" else _Replay(options).run()
    except FileNotFoundError as error:
        if error.filename is None or os.fspath(error.filename) != os.fspath(options.file):
            raise  # the server is not there, which has a status of its own
        raise JumiksError(f"{error.filename}: {error.strerror}") from None


# ---- record


def _record(options: argparse.Namespace) -> int:
    file: Path = options.file
    check_seekable(file)
    if os.path.lexists(file) and not options.overwrite:  # before anything is waited for
        raise JumiksError(f"{file}: it is there already: take another name, or --overwrite")
    with Client(
        options.address,
        start=options.start,
        wait=options.wait,
        name=options.name,
        on_gap="yield",
        reconnect=options.reconnect,
    ) as client:
        recorder = Recorder(
            client,
            file,
            options.address,
            compression=options.compression,
            overwrite=options.overwrite,
            buffer=options.buffer,
        )
        try:
            _run_until_a_signal(recorder, options.count)
        finally:
            _tell(recorder, file)
    return 0


def _run_until_a_signal(recorder: Recorder, count: int | None) -> None:
    # The end of a recording is a signal, so the first of them is no failure. The second one is.
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def end(_number: int, _frame: FrameType | None) -> None:
        restore()
        recorder.close()

    before = {
        number: signal.signal(number, end)
        for number in numbers
        if signal.getsignal(number) is not signal.SIG_IGN  # as nohup has it
    }
    try:
        recorder.run(count)
    finally:
        restore()


def _tell(recorder: Recorder, file: Path) -> None:
    gaps = f"; {counted(recorder.gaps, 'gap')}, {recorder.lost} lost" if recorder.gaps else ""
    say(f"{counted(recorder.messages, 'message')} in {file}{gaps}")


# ---- replay


class _Replay:
    """Publishes a recording, with its ids. A gap is one for clients: another server follows."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._server: Server | None = None
        self._returning = Returning()
        self._source = 0  # the recorded server
        self._server_id = 0  # what stands for it here: a replay is no part of that server's feed
        self._next_id = 0
        self._began = 0.0
        self._first_time = 0
        self._published = 0

    def run(self) -> int:
        try:
            with Reader(self._options.file, self._options.topic) as recording:
                for item in recording:
                    self._take(item)
                if recording.is_cut_off:
                    say(f"{recording.path}: it was cut off; what was before that is published")
            told = 0
            if self._server is not None:
                told = say_if_nobody_heard(self._server, waited=bool(self._options.wait))
        finally:
            if self._server is not None:
                self._server.close(self._options.linger)
        if not told or told != self._published:  # it was the last of several servers
            say(f"{counted(self._published, 'message')} published")
        return 0

    def _take(self, item: Pack | Lost | End) -> None:
        if isinstance(item, Lost):
            say(f"{in_words(item.gap, 'not in the recording')}: {item.gap.reason.value}")
        elif isinstance(item, Pack):
            server = self._server_for(item)
            self._wait_until_due(item.time)
            try:
                ids = server.publish_frames(item.frames)
            except MessageTooLarge as error:
                raise JumiksError(f"{error}: replay with a larger --max-message") from None
            self._next_id = ids.stop if not self._options.renumber else self._after(item, ids)
            self._published += len(ids)

    @staticmethod
    def _after(item: Pack, ids: range) -> int:
        return item.first_id + len(ids)

    def _server_for(self, pack: Pack) -> Server:
        server = self._server
        if server is None:
            server = self._listen(pack)
            if self._options.wait:
                server.wait_for_clients(self._options.wait)
            self._began, self._first_time = time.monotonic(), pack.time
        elif (pack.server_id, pack.first_id) != (self._source, self._next_id):
            if not self._options.renumber:
                server = self._listen_again(server, pack)
            self._source = pack.server_id
        return server

    def _listen(self, pack: Pack) -> Server:
        if pack.server_id != self._source or pack.first_id < self._next_id or not self._server_id:
            self._server_id = int.from_bytes(os.urandom(8), "little") or 1
        first_id = FIRST_ID if self._options.renumber else max(FIRST_ID, pack.first_id)
        with signals_held():
            server = self._server = make_server(
                self._options, first_id=first_id, server_id=self._server_id
            )
        self._source = pack.server_id
        return server

    def _listen_again(self, server: Server, pack: Pack) -> Server:
        returning = self._returning
        returning.closes(len(server.clients()))
        server.close(self._options.linger)
        self._server = None
        server = self._listen(pack)
        returning.listens()
        try:
            server.wait_for_clients(returning.count, returning.left)
        except Timeout:
            words = not_back("--reconnect")
            say(f"{words}, with status 0; --renumber leaves the gaps out")
        return server

    def _wait_until_due(self, recorded: int) -> None:
        if self._options.speed == inf:
            return
        due = self._began + (recorded - self._first_time) / 1e9 / self._options.speed
        while (left := due - time.monotonic()) > 0:
            time.sleep(min(left, 3600.0))
