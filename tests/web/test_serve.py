"""How pages are served: from what, to whom, and only where passwords are safe."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from burnish.cli.serve import _store
from burnish.data.store import LabelStore
from burnish.errors import ConfigError, DataError
from burnish.rehearse.examples import FOURS, GOLD, PAIRS
from burnish.web.app import make_app, serve
from burnish.web.projects import Projects, project_name, selection
from tests.command import begun
from tests.web.desk import Person, comparisons, opened


@pytest.mark.parametrize(
    ("host", "more", "told"),
    [
        ("0.0.0.0", {}, "--public"),
        ("192.0.2.1", {}, "unencrypted"),
        ("0.0.0.0", {"public": "label.example"}, "unencrypted"),
        ("127.0.0.1", {"certificate": Path("nowhere.pem")}, "nowhere.pem does not exist"),
        ("192.0.2.1", {"proxy": True}, "needs --public NAME"),
        ("192.0.2.1", {"proxy": True, "public": "labels.example"}, "cannot be listened on"),
    ],
)
def test_it_is_not_served_where_it_is_not_safe(
    tmp_path: Path, host: str, more: dict[str, Any], told: str
) -> None:
    app = opened(tmp_path / "s.sqlite", comparisons(1))
    with pytest.raises(ConfigError, match=told):
        serve(app, host, 0, on_ready=lambda url: None, **more)


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    app = opened(tmp_path / "s.sqlite", comparisons(1))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="give another --port"):
            serve(app, "127.0.0.1", taken.getsockname()[1], on_ready=lambda url: None)


def test_over_tls_under_a_name_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=label.example",
    ]
    made = subprocess.run(
        [*command, "-keyout", str(key), "-out", str(certificate)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("openssl is not there to make a certificate")
    with LabelStore(tmp_path / "s.sqlite") as store:
        store.add_comparisons(comparisons(1))
    app = make_app(LabelStore(tmp_path / "s.sqlite"), Projects(), https=True, public="label.example:8443")
    servers: list[uvicorn.Server] = []
    run = uvicorn.Server.run

    def remembered(self: uvicorn.Server, sockets: Any = None) -> None:
        servers.append(self)
        run(self, sockets=sockets)

    monkeypatch.setattr(uvicorn.Server, "run", remembered)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told: list[str] = []
    options = {
        "on_ready": told.append,
        "certificate": certificate,
        "key": key,
        "public": "label.example:8443",
    }
    thread = threading.Thread(target=lambda: serve(app, "127.0.0.1", port, **options))
    thread.start()
    try:
        while not servers or not servers[0].started:
            assert thread.is_alive()
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with context.wrap_socket(socket.create_connection(("127.0.0.1", port))) as tls:
            tls.sendall(b"GET /login HTTP/1.1\r\nHost: label.example:8443\r\nConnection: close\r\n\r\n")
            reply = b""
            while part := tls.recv(65536):
                reply += part
    finally:
        servers[0].should_exit = True
        thread.join()
    assert told == ["https://label.example:8443"]
    assert b"200 OK" in reply
    assert b"; Secure" in reply
    assert b"strict-transport-security" in reply


def test_a_proxy_may_keep_the_name_to_itself(tmp_path: Path) -> None:
    store = LabelStore(tmp_path / "s.sqlite")
    app = make_app(store, Projects(), public="label.example")
    root = Person(app, "Root", "admin")
    for origin, status in (
        ("https://label.example", 200),
        ("http://localhost", 200),
        ("https://other.example", 403),
    ):
        reply = root.post("/people/invite", {"role": "viewer"}, headers={"origin": origin})
        assert reply.status_code == status, origin
    assert root.get("/people", headers={"host": "label.example"}).status_code == 200


def test_what_can_be_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert _store(None, False) == Path("labels.sqlite")
    assert Path("labels.sqlite").exists()
    with LabelStore(_store(None, True)) as store:
        assert store.count()["comparisons"] == PAIRS + 6 * FOURS
        assert len(list(store.gold())) == GOLD
    with LabelStore(_store(None, True)) as store:  # again it adds nothing
        assert store.count()["comparisons"] == PAIRS + 6 * FOURS
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"}) + "\n")
    assert _store(str(file), False) == tmp_path / "pairs.sqlite"
    with LabelStore(tmp_path / "pairs.sqlite") as store:
        assert store.count() == {"prompts": 1, "responses": 2, "comparisons": 1, "labels": 0}
    for wrong, error in (
        ("nothing.sqlite", DataError),
        ("notes.txt", DataError),
        ("missing.jsonl", DataError),
    ):
        with pytest.raises(error):
            _store(wrong, False)
    with pytest.raises(ConfigError, match="leave"):
        _store("pairs.jsonl", True)
    assert project_name("postgresql+psycopg://u:secret@h/helpful?host=/tmp/x") == "helpful"
    chosen = tmp_path / "worth.jsonl"
    chosen.write_text('{"comparison": "b"}\n{"comparison": "a"}\n')
    assert selection(chosen) == ["b", "a"]
    assert selection(None) is None


@pytest.mark.e2e
def test_the_first_start_prints_a_link_and_the_second_none(tmp_path: Path) -> None:
    def lines() -> list[str]:
        server = begun("label", "serve", "--example", "--port", "0", cwd=tmp_path)
        assert server.stderr is not None
        found = []
        for line in server.stderr:
            found.append(line)
            if line.startswith("Ctrl-C"):
                break
        server.terminate()
        server.communicate()
        return found

    first = lines()
    assert "/label/example" in first[0]
    assert "/join/" in first[1]
    token = first[1].rsplit("/", 1)[1].strip()
    from burnish.web.accounts import Accounts, open_accounts

    with open_accounts(tmp_path / "example.sqlite") as store:
        Accounts(store).join(token, "Ada", "a long password 42")
    assert not any("/join/" in line for line in lines())
    assert not list(tmp_path.glob("*.page.json"))
