"""The command line before a person: a real pseudo-terminal, of a known size."""

import codecs
import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import segno
from small_server import SECRET_KEY, SmallServer

from wabery import RegistrationIntent
from wabery.cli._registration_intents import _progress

WABERY = Path(sys.executable).parent / "wabery"
LINK = re.compile(r"https://wa\.me/\S+")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
PAIR = re.compile(r"\x1b\[38;5;(\d+);48;5;(\d+)m(▀+)")


class Session:
    """A command on a terminal of its own."""

    def __init__(
        self, server: SmallServer, *words: str, size: tuple[int, int], environment: dict[str, str]
    ) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        home = {
            "WABERY_API_KEY": server.secret_key,
            "WABERY_BASE_URL": server.base_url,
            "TERM": "xterm-256color",
        }
        inherited = {
            name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")
        }
        self.process = subprocess.Popen(
            [WABERY, *words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**inherited, **home, **environment},
            start_new_session=True,
        )
        os.close(theirs)
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self.seen = ""

    def read_until(self, pattern: str | re.Pattern[str], seconds: float = 20) -> re.Match[str]:
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen)):
            ready = select.select([self._ours], [], [], end - time.monotonic())[0]
            if not ready or not self._read():
                raise AssertionError(f"{pattern} did not appear in {self.seen!r}")
        return found

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def end(self) -> tuple[int, str]:
        """The exit code and everything that was shown."""
        while self._read():
            pass
        return self.process.wait(20), self.seen

    def _read(self) -> bool:
        try:
            data = os.read(self._ours, 65536)
        except OSError:  # Linux says so when the last writer has closed the terminal
            return False
        self.seen += self._decoder.decode(data)
        return bool(data)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError):
            os.close(self._ours)


class Start:
    """Starts sessions, and ends what is left of them."""

    def __init__(self, server: SmallServer) -> None:
        self._server = server
        self.sessions: list[Session] = []

    def __call__(self, *words: str, size: tuple[int, int] = (50, 120), **environment: str) -> Session:
        session = Session(self._server, *words, size=size, environment=environment)
        self.sessions.append(session)
        return session


@pytest.fixture
def start(server: SmallServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Start]:
    monkeypatch.chdir(tmp_path)
    start = Start(server)
    yield start
    for session in start.sessions:
        session.close()


def modules(shown: str) -> list[list[int]]:
    """The QR code on the screen, read back from its half blocks and colours."""
    rows = []
    for line in shown.splitlines():
        runs = PAIR.findall(line)
        if not runs:
            continue
        for half in (0, 1):
            rows.append([int(run[half] == "16") for run in runs for _ in run[2]])
    return rows


def test_waiting_shows_a_code_and_one_changing_line(start: Start, server: SmallServer) -> None:
    session = start("registration-intents", "create", "--customer-reference", "user_1", "--wait")
    link = session.read_until(LINK)[0]
    session.read_until("press send")
    server.press_send(link[-30:])

    code, shown = session.end()

    expected = [
        [int(m) for m in row]
        for row in segno.make(link, error="l", boost_error=False, micro=False).matrix_iter(border=4)
    ]
    assert code == 0
    assert modules(shown)[: len(expected)] == expected
    assert "Connected: user_1." in shown
    assert shown.index(link) < shown.index("▀") < shown.index("Connected")


@pytest.mark.parametrize("phase", [None, "awaiting_confirmation", "awaiting_phone", "awaiting_app", "grace"])
def test_the_changing_line_is_one_line(phase: str | None) -> None:
    for end in (datetime.now(UTC), datetime(2026, 12, 24, 20, 30, tzinfo=UTC)):
        line = _progress(
            RegistrationIntent({"phase": phase, "expires_at": end.strftime("%Y-%m-%dT%H:%M:%S.000Z")})
        )

        assert len(line) <= 78  # 80 columns, with the spinner before it


def test_ctrl_c_on_a_terminal(start: Start, server: SmallServer) -> None:
    session = start("registration-intents", "create", "--customer-reference", "user_1", "--wait")
    session.read_until("press send")
    session.process.send_signal(2)

    code, shown = session.end()

    assert code == 130
    assert f"Resume with: wabery registration-intents get {next(iter(server.intents))} --wait" in shown


@pytest.mark.parametrize("size", [(50, 40), (20, 120)])
def test_a_terminal_that_is_too_small_gets_the_link_alone(start: Start, size: tuple[int, int]) -> None:
    code, shown = start(
        "registration-intents", "create", "--customer-reference", "a", "--qr", size=size
    ).end()

    assert code == 0
    assert "▀" not in shown
    assert LINK.search(shown)
    assert "too small" in shown


@pytest.mark.parametrize(
    ("words", "environment"), [((), {"NO_COLOR": "1"}), ((), {"TERM": "dumb"}), (("--no-color",), {})]
)
def test_no_colours_where_none_are_wanted(
    start: Start, server: SmallServer, words: tuple[str, ...], environment: dict[str, str]
) -> None:
    line = ("registration-intents", "create", "--customer-reference", "a", "--wait", *words)
    session = start(*line, **environment)
    link = session.read_until(LINK)[0]
    server.press_send(link[-30:])

    code, shown = session.end()

    assert code == 0
    assert not COLOUR.search(shown)
    assert "No QR code without colours" in shown


def test_the_code_can_be_left_out(start: Start, server: SmallServer) -> None:
    session = start("registration-intents", "create", "--customer-reference", "a", "--wait", "--no-qr")
    server.press_send(session.read_until(LINK)[0][-30:])

    code, shown = session.end()

    assert (code, "▀" in shown) == (0, False)


def test_a_person_is_told_what_comes_next(start: Start, server: SmallServer) -> None:
    code, shown = start("registration-intents", "create", "--customer-reference", "user_1").end()

    assert code == 0
    assert f"Next: wabery registration-intents get {next(iter(server.intents))} --wait" in shown


def test_a_list_is_a_table(start: Start) -> None:
    _, shown = start("projects", "list").end()

    head, row = shown.splitlines()[:2]
    assert re.fullmatch(r"ID +NAME +LIVEMODE +CREATED_AT", head)
    assert head.index("NAME") == row.index("Acme")
    assert re.search(r" \d+ (s|min) ago$", row)


@pytest.mark.parametrize(("answer", "code", "revoked"), [("y", 0, True), ("n", 2, False), ("", 2, False)])
def test_a_person_is_asked_before_something_ends(
    start: Start, server: SmallServer, answer: str, code: int, revoked: bool
) -> None:
    start("keys", "create", "--name", "ci", "--scope", "full").end()
    (key_id,) = server.keys
    session = start("keys", "revoke", key_id)
    session.read_until(r"\[y/N\]")
    session.type(f"{answer}\n")

    ended, _ = session.end()

    assert (ended, server.keys[key_id]["revoked_at"] is not None) == (code, revoked)


def test_no_input_means_no_question(start: Start) -> None:
    code, shown = start("keys", "revoke", "key_1", "--no-input").end()

    assert (code, "[y/N]" in shown) == (2, False)


def test_login_does_not_show_what_is_typed(start: Start, server: SmallServer) -> None:
    session = start("login", "--base-url", server.base_url, WABERY_API_KEY="", WABERY_BASE_URL="")
    session.read_until("API key for")
    session.type(f"{SECRET_KEY}\n")

    code, shown = session.end()

    assert code == 0
    assert SECRET_KEY not in shown
    assert "Logged in" in shown
