# SPDX-License-Identifier: Apache-2.0
"""A web application with a cache in each worker: GET /NAME reads a record, PUT /NAME changes it.

`gunicorn.conf.py` runs it. The records are files in the directory $RECORDS, in place of a database.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cache_invalidation

RECORDS = Path(os.environ.get("RECORDS", "."))


def load(key: bytes) -> bytes:
    return (RECORDS / key.hex()).read_bytes()


cache = cache_invalidation.Cache(load)
"""gunicorn imports this module in each worker, as long as `preload_app` is off."""


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """Answer a request."""
    key = environ["PATH_INFO"].lstrip("/").encode("latin-1")
    headers = [("Content-Type", "text/plain"), ("Worker", str(os.getpid()))]
    if environ["REQUEST_METHOD"] == "PUT":
        value = environ["wsgi.input"].read()
        (RECORDS / key.hex()).write_bytes(value)
        cache_invalidation.changes.announce(key)  # after the commit
    else:
        value = cache.get(key)
    start_response("200 OK", headers)
    return [value]
