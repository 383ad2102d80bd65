"""Who may come in, for how long, and that nobody is taken for somebody else."""

from __future__ import annotations

import threading
import time

import pytest
from scripted import until
from vismem.apps.demo.session import Models
from vismem.apps.demo.sessions import Sessions
from vismem.apps.demo.settings import DemoSettings

from vismem.errors import UsageError


def test_seats_are_limited_and_come_free(sessions: Sessions) -> None:
    here = [sessions.open() for _ in range(4)]
    assert [one is None for one in here] == [False, False, False, True]
    assert here[0] is not None
    sessions.end(here[0])
    assert sessions.open() is not None and len(sessions) == 3


def test_tokens_are_long_and_none_opens_another_visit(sessions: Sessions) -> None:
    one, other = sessions.open(), sessions.open()
    assert one is not None and other is not None and one.token != other.token
    assert len(one.token) >= 43  # 256 bits
    assert sessions.of(one.token) is one and sessions.of(other.token) is other
    for wrong in ("", one.token[:-1], one.token + "x", one.token.swapcase(), "é\udcff", "\0"):
        assert sessions.of(wrong) is None
    sessions.end(one)
    assert sessions.of(one.token) is None


def test_tokens_are_compared_in_constant_time(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []
    import secrets

    real = secrets.compare_digest
    monkeypatch.setattr(secrets, "compare_digest", lambda a, b: compared.append(b) or real(a, b))
    sessions.open(), sessions.open()
    sessions.of("guess")
    assert compared == [b"guess"] * 2  # each of them, whatever the others said


def test_a_visit_without_a_page_ends(sessions: Sessions) -> None:
    watched, dead = sessions.open(), sessions.open()
    assert watched is not None and dead is not None
    watched.viewers = 1
    until(lambda: dead.closed)
    assert not watched.closed and len(sessions) == 1
    watched.viewers, watched.last_seen = 0, time.monotonic()
    until(lambda: watched.closed)


def test_closing_ends_everything(settings: DemoSettings, models: Models) -> None:
    before = set(threading.enumerate())
    sessions = Sessions(settings, models)
    here = [sessions.open(), sessions.open()]
    sessions.close()
    assert all(one is not None and one.closed for one in here) and len(sessions) == 0
    assert sessions.open() is None
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"host": "0.0.0.0"},
        {"host": "192.168.1.5"},
        {"host": "camera.example"},
        {"host": "::"},
        {"host": "0.0.0.0", "auth": ("", "x")},
        {"auth": ("me", "")},
        {"port": 70000},
        {"seats": 0},
        {"budget": "3MB"},
    ],
)
def test_unsafe_or_senseless_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(UsageError):
        DemoSettings(**wrong)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_this_machine_alone_needs_no_password(host: str) -> None:
    assert DemoSettings(host=host).local
