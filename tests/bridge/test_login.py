# SPDX-License-Identifier: Apache-2.0
"""How bridges log in; what is wrong there is a state, and nothing is lost meanwhile."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from support.base import wait_until
from support.bridges import Inside, message
from support.engines import KINDS, RealEngine, require, running
from support.logins import (
    PASSWORD,
    creds_login,
    make_certificates,
    nkey_login,
    words_with_password,
    words_with_tls,
)
from support.servers import Server

from jumiks.bridge import Create, Credentials, Outbound

pytestmark = pytest.mark.slow


def with_user(engine: RealEngine) -> str:
    return engine.url.replace("://", "://bridge@") if engine.kind == "jetstream" else engine.url


def bridge_out(address: str, url: str, credentials: Credentials) -> Outbound:
    return Outbound(address, url, create=Create(), credentials=credentials)


@pytest.fixture
def feed(address: str) -> Iterator[Server]:
    """A source with a message."""
    with Server(address, share_log=True) as source:
        source.publish(message(0))
        yield source


# ---- passwords


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_password_is_a_state_and_nothing_is_lost_meanwhile(
    kind: str, feed: Server, address: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "password"
    file.write_text("wrong\n")
    with running(kind, *words_with_password(kind)) as engine:
        out = bridge_out(address, with_user(engine), Credentials(password_file=str(file)))
        with Inside(out) as bridge:
            wait_until(bridge.is_in("not allowed"))
            assert "does not let this user in" in out.stats().problem
            feed.publish_many([message(each) for each in range(1, 100)])
            file.write_text(f"{PASSWORD}\nand no more")
            wait_until(lambda: out.stats().messages == 100)
    assert PASSWORD not in capfd.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_not_there_is_a_state_until_it_is(
    kind: str, feed: Server, address: str, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    with running(kind, *words_with_password(kind)) as engine:
        out = bridge_out(address, with_user(engine), Credentials(password_file=str(file)))
        with Inside(out) as bridge:
            wait_until(bridge.is_in("not allowed"))
            assert f"{file}: No such file" in out.stats().problem
            file.write_text(PASSWORD)
            wait_until(lambda: out.stats().messages == 1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_environment_may_have_the_password(
    kind: str, feed: Server, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUMIKS_BRIDGE_PASSWORD", PASSWORD)
    with running(kind, *words_with_password(kind)) as engine:
        out = bridge_out(address, with_user(engine), Credentials())
        with Inside(out):
            wait_until(lambda: out.stats().messages == 1)


# ---- keys of NATS


@pytest.mark.parametrize(("option", "login"), [("nkey", nkey_login), ("creds", creds_login)])
def test_a_key_of_nats_lets_a_bridge_in_and_another_does_not(
    option: str,
    login: Callable[[Path], tuple[tuple[str, ...], str]],
    feed: Server,
    address: str,
    tmp_path: Path,
) -> None:
    require("jetstream")
    words, file = login(tmp_path)
    (other := tmp_path / "other").mkdir()
    login(other)
    right = Path(file).read_bytes()
    Path(file).write_bytes((other / Path(file).name).read_bytes())
    with running("jetstream", *words) as engine:
        out = bridge_out(address, engine.url, Credentials(**{option: file}))
        with Inside(out) as bridge:
            wait_until(bridge.is_in("not allowed"))
            Path(file).write_bytes(right)
            wait_until(lambda: out.stats().messages == 1)


@pytest.mark.parametrize("option", ["nkey", "creds"])
def test_a_file_that_has_no_key_is_a_state(option: str, address: str, tmp_path: Path) -> None:
    require("jetstream")
    words, _ = nkey_login(tmp_path)
    file = tmp_path / "empty"
    file.write_text("no key\n")
    with running("jetstream", *words) as engine:
        out = bridge_out(address, engine.url, Credentials(**{option: str(file)}))
        with Inside(out) as bridge:
            wait_until(bridge.is_in("not allowed"))
            assert str(file) in out.stats().problem
            assert "no key" not in out.stats().problem  # what is in the file


# ---- TLS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with certificates."""
    found = tmp_path_factory.mktemp("certificates")
    make_certificates(found)
    return found


def over_tls(kind: str, folder: Path, *, ask: bool = False) -> AbstractContextManager[RealEngine]:
    return running(kind, *words_with_tls(kind, folder, ask=ask), tls=True)


@pytest.mark.parametrize("kind", KINDS)
def test_tls_is_verified(kind: str, feed: Server, address: str, folder: Path) -> None:
    with over_tls(kind, folder) as engine:
        out = bridge_out(address, engine.url, Credentials(tls_ca=f"{folder}/other.pem"))
        with Inside(out) as bridge:
            wait_until(bridge.is_in("tls"))
        out = bridge_out(address, engine.url, Credentials(tls_ca=f"{folder}/ca.pem"))
        with Inside(out):
            wait_until(lambda: out.stats().messages == 1)


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_may_ask_for_a_certificate(
    kind: str, feed: Server, address: str, folder: Path
) -> None:
    ca = f"{folder}/ca.pem"
    with over_tls(kind, folder, ask=True) as engine:
        for name in ("", "other"):
            cert = (f"{folder}/{name}.pem", f"{folder}/{name}.key") if name else (None, None)
            out = bridge_out(address, engine.url, Credentials(None, None, ca, *cert))
            with Inside(out) as bridge:
                wait_until(bridge.is_in("tls"))
        out = bridge_out(address, engine.url, Credentials(None, None, ca, ca, f"{folder}/ca.key"))
        with Inside(out):
            wait_until(lambda: out.stats().messages == 1)


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_that_speaks_tls_alone_is_a_state_for_a_url_without(
    kind: str, address: str, folder: Path
) -> None:
    with over_tls(kind, folder) as engine:
        url = engine.url.replace("tls://", "nats://").replace("rediss://", "redis://")
        out = bridge_out(address, url, Credentials())
        with Inside(out) as bridge:
            wait_until(lambda: out.stats().problem != "")
            # Redis says nothing to such a connection, so it can only be guessed.
            assert bridge.state() == {"jetstream": "tls", "redis": "unreachable"}[kind]
            assert "TLS" in out.stats().problem


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_without_tls_gets_no_password(
    kind: str, address: str, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require(kind)
    if kind == "redis":  # it waits for more of the client's hello
        monkeypatch.setattr("jumiks.bridge.redis_streams.TIMEOUT", 0.3)
    file = tmp_path / "password"
    file.write_text(PASSWORD)
    with running(kind, *words_with_password(kind)) as engine:
        credentials = Credentials(tls_ca=f"{folder}/ca.pem", password_file=str(file))
        out = bridge_out(address, with_user(engine), credentials)
        with Inside(out) as bridge:
            wait_until(lambda: out.stats().problem != "")
            assert bridge.state() in ("tls", "unreachable", "no answer")
            assert out.stats().records == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_certificate_that_is_none_is_a_state(kind: str, address: str, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    with running(kind) as engine:
        out = bridge_out(address, engine.url, Credentials(tls_ca=str(file)))
        with Inside(out) as bridge:
            wait_until(bridge.is_in("tls"))
            assert f"{file}: No such file" in out.stats().problem
            file.write_text("no certificate")
            wait_until(lambda: f"{file}: no PEM" in out.stats().problem)
