# SPDX-License-Identifier: Apache-2.0
"""Draws the pictures of the site, as SVG beside this file: python docs/drawings/draw.py.

A picture is 480 wide, so that its words can be read on a phone. It has a ground of its own, as a
page may be light or dark.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

WIDTH: Final = 480
BLUE, GREEN, AMBER, GREY, RED = "#d6e6fb", "#d8f0dc", "#fdebc8", "#e9edf2", "#fbdcdc"
INK, LINE = "#1c2733", "#5b6b7c"

STYLE: Final = (
    f"text{{font:15px system-ui,'DejaVu Sans',sans-serif;fill:{INK}}}"
    ".small{font-size:13px}.bold{font-weight:bold}.code{font-family:monospace}"
    f"path{{fill:none;stroke:{LINE};stroke-width:2}}"
)

ARROW: Final = (
    '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
    'orient="auto-start-reverse">'
    f'<path d="M0 0L8 4L0 8z" style="fill:{LINE};stroke:none"/></marker>'
)


def text(x: float, y: float, words: str, style: str = "", anchor: str = "middle") -> str:
    """Words at a place; each line of them is one below the other."""
    lines = [
        f'<text x="{x:g}" y="{y + 18 * index:g}" class="{style}" text-anchor="{anchor}">'
        f"{escape(line)}</text>"
        for index, line in enumerate(words.split("\n"))
    ]
    return "".join(lines)


def box(x: float, y: float, width: float, height: float, words: str, fill: str = GREY) -> str:
    """A box with words in its middle; the first line is bold where there are more."""
    first, *more = words.split("\n")
    top = y + height / 2 + 5 - 9 * len(more)
    inside = text(x + width / 2, top, first, "bold" if more else "")
    if more:
        inside += text(x + width / 2, top + 18, "\n".join(more), "small")
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" '
        f'fill="{fill}" stroke="{LINE}"/>{inside}'
    )


def arrow(points: str, both: bool = False, dashed: bool = False) -> str:
    """An arrow along a path."""
    start = ' marker-start="url(#tip)"' if both else ""
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<path d="{points}" marker-end="url(#tip)"{start}{dash}/>'


def cells(x: float, y: float, width: float, names: Iterable[tuple[str, str]]) -> str:
    """A row of small boxes, each a word and a colour."""
    return "".join(
        f'<rect x="{x + index * width:g}" y="{y:g}" width="{width:g}" height="34" fill="{fill}" '
        f'stroke="{LINE}"/>{text(x + index * width + width / 2, y + 22, name, "small")}'
        for index, (name, fill) in enumerate(names)
    )


def picture(title: str, height: int, *parts: str) -> str:
    """A whole picture."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style><defs>{ARROW}</defs>\n"
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#f8fafc"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def overview() -> str:
    """What happens, for the first page."""
    log = [(str(number), GREEN if number < 5 else BLUE) for number in range(1, 9)]
    return picture(
        "A server puts messages into its log; three clients read it, each at its own place",
        330,
        box(140, 14, 200, 48, "your program\nserver.publish(b...)", AMBER),
        arrow("M240 62V94"),
        text(250, 84, "one copy", "small", "start"),
        cells(48, 98, 48, log),
        text(48, 88, "the log, in memory", "small", "start"),
        arrow("M408 246V136"),
        arrow("M312 246V136"),
        arrow("M216 246V136"),
        box(364, 248, 88, 52, "client A\nhas all", GREEN),
        box(262, 248, 88, 52, "client B\nlag 2", GREEN),
        box(158, 248, 90, 52, "client C\nlag 4", RED),
        text(148, 270, "each client\nreads by itself", "small", "end"),
        text(240, 320, "at its limit a client is cut, waited for, or skipped: you choose", "small"),
    )


def architecture() -> str:
    """The two planes of a server, and its clients."""
    return picture(
        "A server has a control thread in Python and a pump thread in C; both know the log",
        470,
        f'<rect x="10" y="10" width="460" height="300" rx="8" fill="none" stroke="{LINE}"/>',
        text(24, 32, "the server's process", "bold", "start"),
        box(24, 46, 206, 62, "publisher\nany thread: publish", AMBER),
        box(250, 46, 206, 62, "control thread\nPython: who may connect", BLUE),
        box(24, 160, 206, 56, "append\nC: one copy into the log", GREEN),
        box(250, 160, 206, 56, "pump thread\nC: sends, acks, lag policy", GREEN),
        box(24, 248, 432, 46, "", GREY),
        text(36, 276, "the log, shared memory (memfd)", "bold", "start"),
        arrow("M127 108V158"),
        arrow("M353 108V158"),
        text(344, 138, "connections", "small", "end"),
        arrow("M127 216V246"),
        arrow("M390 246V218"),
        arrow("M95 296V398", both=True),
        text(103, 338, "mapped,\nread-only", "small", "start"),
        arrow("M320 218V398", dashed=True),
        text(312, 338, "packets:\nslices of the log", "small", "end"),
        arrow("M440 398V218"),
        text(432, 384, "acks", "small", "end"),
        box(24, 400, 150, 54, "client\nshared", GREEN),
        box(196, 400, 134, 54, "client\nframed", GREEN),
        box(346, 400, 110, 54, "client\nclassic", GREEN),
    )


def log() -> str:
    """The log, and where clients stand in it."""
    names = [
        *((str(number), GREY) for number in range(3)),
        *((str(number), AMBER) for number in range(3, 8)),
        *((str(number), BLUE) for number in range(8, 10)),
        ("", "#ffffff"),
        ("", "#ffffff"),
    ]
    return picture(
        "The log: history, then what the slowest client has not acked, then room",
        290,
        text(
            240, 28, "frames lie one behind the other, and stay until their room is needed", "small"
        ),
        cells(24, 96, 36, names),
        arrow("M24 72V94"),
        text(24, 64, "tail: oldest kept", "small", "start"),
        arrow("M134 176V132"),
        text(24, 194, "the floor: client C\nacked message 2", "small", "start"),
        arrow("M312 176V132"),
        text(230, 194, "client B\nacked message 7", "small", "start"),
        arrow("M384 72V94"),
        text(456, 64, "head: the next message", "small", "end"),
        arrow("M384 212V132"),
        text(456, 230, "client A acked all", "small", "end"),
        text(24, 262, "grey: acked by all, history for those that come later", "small", "start"),
        text(
            24,
            280,
            "amber: C's lag of 7 and B's of 2 hold these; nothing overwrites them",
            "small",
            "start",
        ),
    )


def handshake() -> str:
    """What passes between the two ends, in time."""
    steps = [
        (70, True, "connect"),
        (112, False, "hello: version, what I can, ids, limits"),
        (154, True, "reply: version, what I want, where to start"),
        (196, False, "welcome: first id; the log's descriptors"),
        (238, False, "messages, or only wake-ups"),
        (280, True, "acks, as messages are handled"),
        (322, False, "BYE: why the connection ends"),
    ]
    lines = []
    for y, to_right, words in steps:
        lines.append(arrow(f"M62 {y}H418") if to_right else arrow(f"M418 {y}H62"))
        lines.append(text(240, y - 7, words, "small"))
    return picture(
        "The handshake in time: hello, reply, welcome, messages, acks, BYE",
        354,
        box(14, 10, 96, 34, "client", GREEN),
        box(370, 10, 96, 34, "server", AMBER),
        '<path d="M62 44V344"/><path d="M418 44V344"/>',
        *lines,
    )


def message() -> str:
    """The life of a message on both paths."""
    left = [
        ("the client sleeps?", "then one wake-up"),
        ("client reads head", "and finds the frames"),
        ("copies them out", "then checks the tail"),
        ("your code", "handles the message"),
        ("stores its ack", "in its cursor page"),
    ]
    right = [
        ("pump", "sees new frames"),
        ("sendmmsg", "slices of the log"),
        ("client receives", "one packet, many frames"),
        ("your code", "handles the message"),
        ("sends its ack", "8 bytes"),
    ]
    parts = [
        box(130, 12, 220, 44, "publish\none copy into the log", AMBER),
        arrow("M190 56L118 96"),
        arrow("M290 56L362 96"),
        text(24, 88, "shared log", "bold", "start"),
        text(456, 88, "packets", "bold", "end"),
    ]
    for index, (ours, theirs) in enumerate(zip(left, right, strict=True)):
        y = 100 + 66 * index
        parts.append(box(14, y, 216, 46, "\n".join(ours), GREEN))
        parts.append(box(250, y, 216, 46, "\n".join(theirs), BLUE))
        parts += [arrow(f"M122 {y + 46}V{y + 64}"), arrow(f"M358 {y + 46}V{y + 64}")]
    parts.append(
        box(14, 430, 452, 46, "the server\nthe room may be used again once all have acked", AMBER)
    )
    return picture("The life of a message: by the shared log, and by packets", 490, *parts)


DRAWINGS: Final[dict[str, Callable[[], str]]] = {
    "overview": overview,
    "architecture": architecture,
    "log": log,
    "handshake": handshake,
    "message": message,
}


def main() -> None:
    """Write all of them."""
    for name, draw in DRAWINGS.items():
        Path(__file__).with_name(f"{name}.svg").write_text(draw(), "utf-8")


if __name__ == "__main__":
    main()
