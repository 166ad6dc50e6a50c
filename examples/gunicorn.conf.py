# SPDX-License-Identifier: Apache-2.0
"""gunicorn's workers tell each other what they have changed: `cd examples; gunicorn`.

The master makes `Changes` once, and workers inherit it. A reload (SIGHUP) reads this file again,
but not the module `cache_invalidation`: so it and its server stay, and new workers find them.
"""

import cache_invalidation

wsgi_app = "gunicorn_app:app"
workers = 3


def on_starting(_arbiter: object) -> None:
    """In the master, before the first worker."""
    cache_invalidation.changes = cache_invalidation.Changes()


def on_exit(_arbiter: object) -> None:
    """In the master, behind the last worker."""
    cache_invalidation.changes.close()
