"""The suite itself: it ends in the background and under nohup too, and no test can hang it."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from wabery_server.db import embedded

ROOT = Path(__file__).parents[2]
IGNORING = "import os, signal, sys; {}; os.execv(sys.argv[1], sys.argv[1:])"
PATIENCE = 60

CLUSTER = """
import os, signal, subprocess, sys

def test_children_take_ctrl_c(pg):
    child = subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with child:
        child.stdout.readline()
        child.send_signal(signal.SIGINT)
        assert child.wait(20) == -signal.SIGINT
"""
HANG = """
import threading

def test_hangs():
    threading.Event().wait()

def test_goes_on():
    pass
"""


@pytest.fixture
def inner() -> Iterator[Path]:
    """A folder of tests that stand on this suite's fixtures and settings, with a path short enough for a socket."""
    folder = Path(tempfile.mkdtemp(prefix="wabery-suite-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


def run(folder: Path, test: str, *options: str, ignored: str = "") -> "subprocess.CompletedProcess[str]":
    """Runs pytest on one file as this suite is run, with the signals of a background job."""
    tests, temporary = folder / "tests", folder / "tmp"
    tests.mkdir()
    temporary.mkdir()
    (tests / "test_inner.py").write_text(test, "utf-8")
    (folder / "background.py").write_text((ROOT / "conftest.py").read_text("utf-8"), "utf-8")
    ignoring = "; ".join(f"signal.signal(signal.{name}, signal.SIG_IGN)" for name in ignored.split())
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "background", *options]
    words += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), str(tests)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WABERY_TEST_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), str(ROOT / "server/tests")])
    environment["TMPDIR"] = str(temporary)
    return subprocess.run(
        [sys.executable, "-c", IGNORING.format(ignoring or "pass"), *words],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        timeout=PATIENCE,
        start_new_session=True,
        cwd=folder,
    )


def test_the_suite_ends_where_the_shell_ignores_signals(inner: Path) -> None:
    ran = run(inner, CLUSTER, "-p", "conftest", ignored="SIGINT SIGQUIT SIGHUP")

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert list((inner / "tmp").iterdir()) == []
    assert not processes_in(inner / "tmp")


def test_a_test_that_hangs_fails_with_its_stack_and_the_suite_goes_on(inner: Path) -> None:
    ran = run(inner, HANG, "--override-ini=timeout=1")

    assert "1 failed, 1 passed" in ran.stdout, ran.stdout + ran.stderr
    assert "threading.Event().wait()" in ran.stdout
    assert "Timeout" in ran.stdout


def test_every_test_has_a_time_limit(pytestconfig: pytest.Config) -> None:
    assert 0 < float(pytestconfig.getini("timeout")) <= 300
    assert pytestconfig.getini("timeout_method") == "signal"


def test_signals_of_this_run_are_the_default_ones() -> None:
    assert signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, None)
    assert signal.getsignal(signal.SIGQUIT) is signal.SIG_DFL


def test_postgresql_starts_with_default_signals_where_the_shell_ignores_them() -> None:
    through = [sys.executable, "-I", "-S", str(Path(embedded.__file__).with_name("child.py"))]
    told = [str(os.getpid()), str(int(signal.SIGKILL)), "same", "/bin/sleep", "60"]
    ignoring = IGNORING.format("signal.signal(signal.SIGINT, signal.SIG_IGN)")

    with subprocess.Popen([sys.executable, "-c", ignoring, *through, *told]) as child:
        while Path(f"/proc/{child.pid}/comm").read_text("utf-8") != "sleep\n":
            assert child.poll() is None
        child.send_signal(signal.SIGINT)
        ended = child.wait(PATIENCE)

    assert ended == -signal.SIGINT


def processes_in(folder: Path) -> list[str]:
    """Command lines of the processes that name the folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes()
        except OSError:
            continue
        if os.fsencode(folder) in line:
            found.append(line.decode(errors="replace"))
    return found
