# SPDX-License-Identifier: Apache-2.0
"""Recordings of a feed, in MCAP files: docs/recording.md. Needs `pip install 'jumiks[record]'`."""

from .file import COMPRESSIONS, Compression, End, Lost, Pack, Reader, RecordingError
from .recorder import Recorder

__all__ = [
    "COMPRESSIONS",
    "Compression",
    "End",
    "Lost",
    "Pack",
    "Reader",
    "Recorder",
    "RecordingError",
]
