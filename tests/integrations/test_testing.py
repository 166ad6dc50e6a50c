# SPDX-License-Identifier: Apache-2.0
"""The fixtures for users' tests, in a pytest of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.no_core

TESTS = """
import pytest

addresses = set()

@pytest.mark.parametrize("number", range(3))
def test_each_test_has_its_own(jumiks_server, jumiks_client, jumiks_address, number):
    assert jumiks_server.address == jumiks_address
    assert jumiks_address not in addresses
    addresses.add(jumiks_address)
    jumiks_server.publish(b"a tick")
    assert jumiks_client.receive(timeout=20) == b"a tick"

class TestOptions:
    @pytest.fixture
    def jumiks_options(self):
        return {"max_message": 1000}

    def test_the_server_has_them(self, jumiks_server):
        assert jumiks_server.max_message == 1000

kept = []

def test_one_that_leaves_all_open(jumiks_server, jumiks_client):
    kept.extend([jumiks_server, jumiks_client])

def test_it_is_closed_all_the_same():
    with pytest.raises(Exception, match="closed"):
        kept[0].publish(b"x")
    with pytest.raises(Exception, match="closed"):
        kept[1].receive(timeout=0)
"""


def test_a_users_tests_have_fixtures(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["jumiks.testing"]\n')
    (tmp_path / "test_user.py").write_text(TESTS)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "6 passed" in run.stdout
