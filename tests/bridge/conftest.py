# SPDX-License-Identifier: Apache-2.0
from collections.abc import Iterator

import pytest
from support.engines import KINDS, RealEngine, running


@pytest.fixture(params=KINDS)
def engine(request: pytest.FixtureRequest) -> Iterator[RealEngine]:
    """Each engine in turn, running, with no stream yet."""
    with running(request.param) as found:
        yield found


@pytest.fixture(autouse=True)
def log_as_it_is_for_users(large_log: None) -> None:
    """A bridge that is killed has as long as the source's log lasts, so that has its usual size."""
