# SPDX-License-Identifier: Apache-2.0
"""The `jumiks` command.

`EXIT_STATUS` in usage.py has what its exit statuses mean.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Final, NoReturn

from jumiks.errors import AddressInUse, ConnectionEnded, JumiksError, Lagged, Refused, Timeout

from .parser import make_parser
from .streams import prepare_streams, say
from .usage import Parser, UsageError

__all__ = ["main"]

FAILED: Final = 1
NOT_THERE: Final = 3
ENDED: Final = 4
INTERRUPTED: Final = 128 + signal.SIGINT
BROKEN_PIPE: Final = 128 + signal.SIGPIPE


_OF_THE_ADDRESS: Final = (
    Refused,
    ConnectionRefusedError,
    FileNotFoundError,
    FileExistsError,
    AddressInUse,
)


_SILENT: Final = logging.NullHandler()
"""The commands say themselves what their users should see, on the same standard error."""


class _Terminated(SystemExit):
    pass


def _terminate(number: int, _frame: FrameType | None) -> NoReturn:
    # As Ctrl-C does, so that servers and clients are closed; a service manager expects 0.
    raise _Terminated(0 if number == signal.SIGTERM else 128 + number)


def _say(error: BaseException) -> None:
    words = error.command_text if isinstance(error, Lagged) else str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        # Without Python's "[Errno 2]", and with the file's name first.
        words = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    say(words)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status.

    Args:
        arguments: what stands behind the command's name; by default what the process was given.
    """
    logging.getLogger("jumiks").addHandler(_SILENT)
    prepare_streams()
    options = make_parser().parse_args(arguments)
    signals = [signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # else it is nohup's
        signals.append(signal.SIGHUP)
    before = [signal.signal(number, _terminate) for number in signals]
    try:
        status: int = options.run(options)
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except BrokenPipeError:
        # What is still buffered would raise once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except UsageError as error:
        parser: Parser = options.parser
        parser.error(str(error))
    except _OF_THE_ADDRESS as error:
        _say(error)
        return NOT_THERE
    except ConnectionEnded as error:
        _say(error)
        return ENDED
    except (JumiksError, OSError, ValueError, TypeError, Timeout) as error:
        _say(error)
        return FAILED
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
