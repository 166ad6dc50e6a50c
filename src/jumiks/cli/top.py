# SPDX-License-Identifier: Apache-2.0
"""`jumiks top`: a running server, live."""

from __future__ import annotations

import argparse
import sys
import time
from operator import itemgetter
from typing import Final

from jumiks.errors import JumiksError
from jumiks.monitor import Monitor
from jumiks.stats import share

from .status import HEAD, LEFT, Sample, cells, server_lines

try:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text
except ImportError as error:
    raise JumiksError("top needs rich, which is not installed: pip install rich") from error

__all__ = ["run"]

_BAR: Final = 20


def run(options: argparse.Namespace) -> int:
    """Show the status again and again, until Ctrl-C or `--count`."""
    left = sys.maxsize if options.count is None else options.count
    console = Console()
    with Monitor(options.address) as monitor:
        before = monitor.status()
        with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
            while left:
                time.sleep(options.interval)
                status = monitor.status()
                live.update(picture(Sample(status, before)), refresh=True)
                before = status
                left -= 1
    return 0


def picture(sample: Sample) -> Group:
    """Return what the screen shows."""
    table = Table(box=None, pad_edge=False)
    for name in HEAD:
        table.add_column(name, justify="left" if name in LEFT else "right")
    table.add_column("LIMIT")
    status = sample.status
    shares = [(share(info, status.max_lag, status.stats.log_size), info) for info in status.clients]
    for part, info in sorted(shares, key=itemgetter(0), reverse=True):
        style = "red" if part > 0.8 else "yellow" if part > 0.5 else "green"
        bar = ProgressBar(1.0, min(part, 1.0), _BAR, complete_style=style, finished_style=style)
        table.add_row(*map(Text, cells(sample, info)), bar)
    return Group(*map(Text, server_lines(sample)), Text(""), table)
