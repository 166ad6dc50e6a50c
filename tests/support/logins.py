# SPDX-License-Identifier: Apache-2.0
"""What engines let bridges in by: certificates, and the keys and tokens of NATS."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

PASSWORD = "open sesame"


def words_with_password(kind: str) -> tuple[str, ...]:
    """Arguments with which an engine asks for the password."""
    if kind == "jetstream":
        return ("--user", "bridge", "--pass", PASSWORD)
    return ("--requirepass", PASSWORD)


# ---- TLS


def make_certificates(folder: Path) -> None:
    """Make `ca.pem` and `other.pem`, with their keys, each good for itself alone."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl here to make certificates")
    for name in ("ca", "other"):
        options = {
            "-newkey": "ec",
            "-pkeyopt": "ec_paramgen_curve:prime256v1",
            "-days": "2",
            "-subj": f"/CN={name}",
            "-keyout": f"{folder}/{name}.key",
            "-out": f"{folder}/{name}.pem",
        }
        words = ["openssl", "req", "-x509", "-nodes"]
        words += [word for pair in options.items() for word in pair]
        for extension in ("basicConstraints=critical,CA:TRUE", "subjectAltName=IP:127.0.0.1"):
            words += ["-addext", extension]
        subprocess.run(words, check=True, capture_output=True)


def words_with_tls(kind: str, folder: Path, *, ask: bool = False) -> tuple[str, ...]:
    """Arguments with which an engine speaks TLS alone.

    Args:
        kind: the engine.
        folder: where `make_certificates` has made them.
        ask: whether it asks for the other end's certificate too.
    """
    cert, key = f"{folder}/ca.pem", f"{folder}/ca.key"
    if kind == "jetstream":
        own = ("--tls", "--tlscert", cert, "--tlskey", key)
        return (*own, "--tlsverify", "--tlscacert", cert) if ask else own
    words = ("--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", cert)
    return (*words, "--tls-auth-clients", "yes" if ask else "no")


# ---- NATS


class Key:
    """A key pair of NATS.

    Args:
        kind: `"OPERATOR"`, `"ACCOUNT"` or `"USER"`.
    """

    def __init__(self, kind: str) -> None:
        nkeys = pytest.importorskip("nkeys", reason="jumiks[nats] brings it")
        self.seed: bytes = nkeys.encode_seed(os.urandom(32), getattr(nkeys, f"PREFIX_BYTE_{kind}"))
        self._pair = nkeys.from_seed(self.seed)
        self.public: str = self._pair.public_key.decode()

    def sign(self, subject: str, name: str, nats: dict[str, Any]) -> str:
        """Return a JWT about another key."""
        claims = {"jti": "", "iat": 1_700_000_000, "iss": self.public, "name": name}
        claims |= {"sub": subject, "nats": {"version": 2, **nats}}
        digest = hashlib.sha256(json.dumps(claims).encode()).digest()
        claims["jti"] = base64.b32encode(digest).decode().rstrip("=")
        head = {"typ": "JWT", "alg": "ed25519-nkey"}
        text = b".".join(_coded(json.dumps(each).encode()) for each in (head, claims))
        return f"{text.decode()}.{_coded(self._pair.sign(text)).decode()}"


def _coded(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def nkey_login(folder: Path) -> tuple[tuple[str, ...], str]:
    """Return arguments of a server that lets one nkey in, and the path of its seed."""
    user = Key("USER")
    (folder / "seed").write_bytes(user.seed)
    (folder / "config").write_text(f"authorization {{ users = [{{ nkey: {user.public} }}] }}\n")
    return ("-c", f"{folder}/config"), f"{folder}/seed"


def creds_login(folder: Path) -> tuple[tuple[str, ...], str]:
    """Return arguments of a server that trusts an operator, and the path of a user's file."""
    operator, account, user = Key("OPERATOR"), Key("ACCOUNT"), Key("USER")
    limits = dict.fromkeys(
        ("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1
    ) | {"wildcards": True, "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}
    system = Key("ACCOUNT")
    whole = {"type": "operator", "system_account": system.public}
    no_streams = {**limits, "mem_storage": 0, "disk_storage": 0}
    tokens = {
        "operator": operator.sign(operator.public, "operator", whole),
        "account": operator.sign(account.public, "account", {"type": "account", "limits": limits}),
        "system": operator.sign(system.public, "system", {"type": "account", "limits": no_streams}),
        "user": account.sign(
            user.public, "user", {"type": "user", "subs": -1, "data": -1, "payload": -1}
        ),
    }
    (folder / "config").write_text(
        f"operator: {tokens['operator']}\nresolver: MEMORY\n"
        f"system_account: {system.public}\nresolver_preload: {{\n"
        f"{account.public}: {tokens['account']}\n{system.public}: {tokens['system']}\n}}\n"
    )
    (folder / "creds").write_text(
        f"-----BEGIN NATS USER JWT-----\n{tokens['user']}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
    )
    return ("-c", f"{folder}/config"), f"{folder}/creds"
