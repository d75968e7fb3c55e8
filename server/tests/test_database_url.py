"""DATABASE_URL as libpq, managed services, poolers and ORMs write it."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlsplit

import pytest
from asyncpg import connect_utils
from hypothesis import given
from hypothesis import strategies as st
from test_admin import Terminal

from wabery_server.db import Database, Source, pooler
from wabery_server.db.embedded import Embedded, child
from wabery_server.db.url import BadUrl, DatabaseUrl, read

PASSWORD = "s3cr3t-p4ss"


def query(url: str, home: Path = Path("/nowhere")) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(read(url, home=home).dsn).query))


# Spelling


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://u:{PASSWORD}@db.internal:6432/wabery",
        f"postgres://u:{PASSWORD}@db.internal:6432/wabery",
        f"POSTGRESQL://u:{PASSWORD}@db.internal:6432/wabery",
        f"postgresql+asyncpg://u:{PASSWORD}@db.internal:6432/wabery",
        f"postgres+psycopg2://u:{PASSWORD}@db.internal:6432/wabery",
        f"postgis://u:{PASSWORD}@db.internal:6432/wabery",
        f"pgsql://u:{PASSWORD}@db.internal:6432/wabery",
        f"jdbc:postgresql://db.internal:6432/wabery?user=u&password={PASSWORD}",
        f"host=db.internal port=6432 dbname=wabery user=u password={PASSWORD}",
        f"host = 'db.internal'  port=6432 dbname='wabery' user=u password='{PASSWORD}'",
        f"  postgresql://u:{PASSWORD}@db.internal:6432/wabery\n",
        f'"postgresql://u:{PASSWORD}@db.internal:6432/wabery"',
    ],
)
async def test_one_database_in_many_spellings(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = await connected_to(url, monkeypatch)

    assert arguments == ([("db.internal", 6432)], "u", PASSWORD, "wabery")


@pytest.mark.parametrize(
    "password", ["a@b", "a#b", "a/b", "a?b", "a%b", "a:b", "a b", "ü", "%41", "[", "a&b=c"]
)
async def test_any_password_may_be_percent_encoded(password: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"postgresql://u:{quote(password, safe='')}@h/d"

    assert (await connected_to(url, monkeypatch))[2] == password


async def test_a_password_with_an_at_sign_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await connected_to("postgresql://u:a@b@h:1/d", monkeypatch))[:3] == ([("h", 1)], "u", "a@b")


async def test_a_password_of_pairs_may_hold_quotes(monkeypatch: pytest.MonkeyPatch) -> None:
    found = await connected_to(r"host=h user=u dbname=d password='a\'b \\ c'", monkeypatch)

    assert found[2] == r"a'b \ c"


async def test_several_hosts_sockets_and_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    several = await connected_to("postgresql://u@a:1,b:2/d", monkeypatch)
    socket_ = await connected_to("postgresql://u@%2Frun%2Fpg:5433/d", monkeypatch)
    by_query = await connected_to("postgresql://u@/d?host=/run/pg&port=5433", monkeypatch)
    six = await connected_to("postgresql://u@[::1]:5433/d", monkeypatch)

    assert several[0] == [("a", 1), ("b", 2)]
    assert socket_[0] == by_query[0] == ["/run/pg/.s.PGSQL.5433"]
    assert six[0] == [("::1", 5433)]


async def connected_to(url: str, monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    """Which addresses asyncpg tries, and as whom."""
    for name in [one for one in os.environ if one.startswith("PG")]:
        monkeypatch.delenv(name)
    given = read(url, home=Path("/nowhere"))
    arguments = dict.fromkeys(
        [
            "host",
            "port",
            "user",
            "password",
            "passfile",
            "database",
            "ssl",
            "service",
            "servicefile",
            "direct_tls",
            "server_settings",
            "target_session_attrs",
            "krbsrvname",
            "gsslib",
        ]
    )
    addresses, params = connect_utils._parse_connect_dsn_and_args(
        **{**arguments, "dsn": given.dsn, **given.parts}
    )
    return addresses, params.user, params.password, params.database


# Parameters


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("sslmode=require&channel_binding=require", {"sslmode": "require"}),
        ("sslmode=require&channel_binding=prefer", {"sslmode": "require"}),
        ("sslmode=no-verify", {"sslmode": "require"}),
        ("ssl=true", {"sslmode": "require"}),
        ("ssl=false", {"sslmode": "disable"}),
        (
            "ssl=true&sslmode=verify-ca&sslrootcert=/ca.pem",
            {"sslmode": "verify-ca", "sslrootcert": "/ca.pem"},
        ),
        ("sslmode=verify-full&sslrootcert=/ca.pem", {"sslmode": "verify-full", "sslrootcert": "/ca.pem"}),
        ("sslmode=verify-full&sslrootcert=system", {}),
        ("sslrootcert=system", {}),
        ("sslmode=verify-full", {}),
        ("sslaccept=strict", {}),
        ("sslmode=", {}),
        ("connect_timeout=10&keepalives=1&keepalives_idle=30&keepalives_interval=10&keepalives_count=5", {}),
        ("tcp_user_timeout=1000&application_name=x&fallback_application_name=y&client_encoding=utf8", {}),
        ("target_session_attrs=read-write", {"target_session_attrs": "read-write"}),
        ("targetServerType=primary", {"target_session_attrs": "primary"}),
        ("options=-c%20statement_timeout%3D5s", {"options": "-c statement_timeout=5s"}),
        ("options=project%3Dep-cool", {"options": "project=ep-cool"}),
        ("pgbouncer=true&connection_limit=5&pool_timeout=0&statement_cache_size=0", {}),
        ("schema=public", {"search_path": "public"}),
        (
            "currentSchema=wabery&ApplicationName=x&prepareThreshold=0&reWriteBatchedInserts=true",
            {"search_path": "wabery"},
        ),
        ("pool_max_conns=4&pool_min_conns=1&default_query_exec_mode=exec", {}),
        ("gssencmode=disable&sslsni=1&sslcompression=0&load_balance_hosts=random", {}),
        ("serverVersion=16&charset=utf8", {}),
        ("conn_max_age=60&conn_health_checks=true", {}),
        ("citus.multi_shard_modify_mode=parallel", {"citus.multi_shard_modify_mode": "parallel"}),
        ("sslmode=disable&sslmode=require", {"sslmode": "require"}),
    ],
)
def test_what_others_write_is_kept_translated_or_dropped(written: str, told: dict[str, str]) -> None:
    assert query(f"postgresql://u:{PASSWORD}@h/d?{written}") == told


@pytest.mark.parametrize(
    "written", ["sslmode=verify-full&sslrootcert=system", "sslmode=verify-full", "sslaccept=strict"]
)
def test_the_systems_certificates_verify_the_name(written: str) -> None:
    context = read(f"postgresql://u@h/d?{written}", home=Path("/nowhere")).parts["ssl"]

    assert isinstance(context, ssl.SSLContext)
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED


def test_a_root_certificate_of_ones_own_is_left_to_the_driver(tmp_path: Path) -> None:
    (tmp_path / ".postgresql").mkdir()
    (tmp_path / ".postgresql/root.crt").touch()

    assert query("postgresql://u@h/d?sslmode=verify-full", tmp_path) == {"sslmode": "verify-full"}


def test_what_has_no_effect_is_said() -> None:
    found = read("postgresql://u@h/d?pgbouncer=true&keepalives=1&channel_binding=require")

    assert found.dropped == ("pgbouncer", "keepalives")
    assert "channel_binding" in found.warnings[0]


# Refusals


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (f"mysql://u:{PASSWORD}@h/d", "mysql://"),
        (f"prisma+postgres://{PASSWORD}/?api_key={PASSWORD}", "prisma+postgres://"),
        (f"u:{PASSWORD}@h/d", "postgresql://user"),
        (f"postgresql://u:{PASSWORD}#x@h/d", "%23"),
        (f"postgresql://u:{PASSWORD}/x@h/d", "Percent-encode"),
        (f"postgresql://u:x%{PASSWORD}@h/d", "%25"),
        (f"postgresql://u@h:{PASSWORD}/d", "Percent-encode"),
        (f"postgresql://u@h:99999/d?password={PASSWORD}", "port"),
        (f"postgresql://u@h/d?port={PASSWORD}", "port"),
        (f"postgresql://u:{PASSWORD}@h/d?sslmode=sometimes", "sslmode must be"),
        (f"postgresql://u:{PASSWORD}@h/d?sslmode=require&sslrootcert=system", "verify-full"),
        (f"postgresql://u:{PASSWORD}@h/d?target_session_attrs=standby", "target_session_attrs"),
        (f"postgresql://u:{PASSWORD}@h/d?gssencmode=require", "gssencmode"),
        (f"postgresql://u:{PASSWORD}@h/d?replication=database", "replication"),
        (f"postgresql://u:{PASSWORD}@h/d?frobnicate={PASSWORD}", "'frobnicate'"),
        (f"postgresql://u:{PASSWORD}\x00@h/d", "control characters"),
        (f"postgresql://u:{PASSWORD}@h/d\npostgresql://x", "control characters"),
        (f"host=h password='{PASSWORD}", "postgresql://user"),
        (f"host=h pass word={PASSWORD}", "postgresql://user"),
    ],
)
def test_what_is_not_understood_is_named_and_no_password_shown(url: str, says: str) -> None:
    with pytest.raises(BadUrl) as refused:
        read(url)

    assert says in str(refused.value)
    assert PASSWORD not in str(refused.value)
    assert "\n" not in str(refused.value)


@given(
    st.text(max_size=60),
    st.sampled_from(["", "postgresql://", "postgres://u:", "host=", "postgresql://u@h/d?"]),
)
def test_any_text_is_read_or_refused_in_one_sentence(text: str, head: str) -> None:
    found: DatabaseUrl | BadUrl
    try:
        found = read(head + text)
    except BadUrl as refused:
        found = refused

    assert str(found).startswith("DATABASE_URL" if isinstance(found, BadUrl) else "DatabaseUrl(")
    assert isinstance(found, BadUrl) or found.dsn not in repr(found)


# Poolers


@pytest.fixture
def bouncer(pg: Embedded, tmp_path: Path) -> Callable[..., "asynccontextmanager[str]"]:
    """A real PgBouncer in front of the run's PostgreSQL: gives its URL."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed")

    @asynccontextmanager
    async def running(database: str, mode: str, **settings: str) -> AsyncIterator[str]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        at = pg.address
        lines = {
            "listen_addr": "127.0.0.1",
            "listen_port": str(port),
            "auth_type": "any",
            "unix_socket_dir": "",
            "pool_mode": mode,
            "max_client_conn": "100",
            "default_pool_size": "50",
            **settings,
        }
        file = tmp_path / "pgbouncer.ini"
        password = f" password={at.password}" if at.password else ""
        file.write_text(
            f"[databases]\n{database} = host={at.host} port={at.port} user={at.user}{password}\n"
            "[pgbouncer]\n" + "".join(f"{name} = {value}\n" for name, value in lines.items()),
            "utf-8",
        )
        # PgBouncer refuses to run as root, and another user could not read the socket's folder.
        through = [sys.executable, "-I", "-S", child.__file__, str(os.getpid()), str(int(signal.SIGKILL))]
        through.append("namespace" if os.geteuid() == 0 else "same")
        command = [*through, program, str(file)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # noqa: ASYNC220  # returns at once
        try:
            async with asyncio.timeout(20):
                while not await _listens(port):
                    assert process.poll() is None, "pgbouncer ended"
                    await asyncio.sleep(0.02)  # it has no other sign of being ready
            yield f"postgresql://{at.user}@127.0.0.1:{port}/{database}?sslmode=disable"
        finally:
            process.kill()
            process.wait(20)

    return running


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


@pytest.mark.parametrize(
    ("mode", "settings"),
    [
        ("transaction", {}),
        ("transaction", {"ignore_startup_parameters": "jit,random_page_cost,lock_timeout"}),
        ("transaction", {"server_round_robin": "1"}),
        ("transaction", {"default_pool_size": "1"}),
        ("statement", {}),
    ],
)
async def test_a_pooler_that_changes_sessions_is_refused(
    bouncer: Callable[..., "asynccontextmanager[str]"], source: Source, mode: str, settings: dict[str, str]
) -> None:
    async with bouncer(str(source.parts["database"]), mode, **settings) as url:
        with pytest.raises(pooler.TransactionPooling):
            await pooler.check(Source(dsn=url))


@pytest.mark.parametrize(
    "ignored", ["", "jit,random_page_cost,lock_timeout,idle_in_transaction_session_timeout"]
)
async def test_a_pooler_that_keeps_sessions_is_used_with_our_settings(
    bouncer: Callable[..., "asynccontextmanager[str]"], source: Source, ignored: str
) -> None:
    settings = {"ignore_startup_parameters": ignored} if ignored else {}
    async with bouncer(str(source.parts["database"]), "session", **settings) as url:
        through = Source(dsn=url)
        await pooler.check(through)
        async with Database(through) as database:
            found = await database.run(
                lambda tx: tx.row("select current_setting('lock_timeout') t, current_setting('jit') j")
            )
            on_lane = await database.lane().run(
                lambda tx: tx.row("select current_setting('enable_seqscan') s")
            )

    assert through.pooled
    assert found is not None
    assert found["j"] == "off"
    assert re.fullmatch(r"[1-9]\d*m?s", found["t"])
    assert on_lane is not None
    assert on_lane["s"] == "off"


class Pooler:
    """As PgBouncer behaves, for machines without it: no TLS, no settings in the greeting, transactions on shared sessions."""

    def __init__(self, source: Source, *, transactions: bool) -> None:
        self._parts = source.parts
        self._transactions = transactions
        self._shared: Session | None = None
        self._turn = asyncio.Lock()
        self._sessions: list[Session] = []

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Gives the URL to connect to."""
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        yield f"postgresql://{self._parts['user']}@127.0.0.1:{port}/d?sslmode=disable"
        server.close()
        for session in self._sessions:
            await session.close()

    async def _open(self) -> "Session":
        self._sessions.append(await Session.opened(self._parts))
        return self._sessions[-1]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await _greet(reader, writer)
            own = None if self._transactions else await self._open()
            while True:
                message = await _message(reader)
                async with self._turn if self._transactions else contextlib.nullcontext():
                    session = own or self._shared or await self._open()
                    self._shared = None if own else session
                    session.client = writer
                    while await session.take(message) != b"I":
                        message = await _message(reader)
        writer.close()


class Session:
    """A connection to the server, lent to one client after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.client: asyncio.StreamWriter | None = None
        self._reader, self._writer = reader, writer
        self._states: asyncio.Queue[bytes] = asyncio.Queue()
        self._pump = asyncio.create_task(self._answers())

    @classmethod
    async def opened(cls, at: dict[str, object]) -> "Session":
        if not str(at["host"]).startswith("/"):
            pytest.skip("the run's PostgreSQL has no socket")
        reader, writer = await asyncio.open_unix_connection(f"{at['host']}/.s.PGSQL.{at['port']}")
        text = f"user\0{at['user']}\0database\0{at['database']}\0\0".encode()
        writer.write(struct.pack("!II", len(text) + 8, 3 << 16) + text)
        while (await _message(reader))[:1] != b"Z":
            pass
        return cls(reader, writer)

    async def close(self) -> None:
        self._writer.close()
        await self._pump

    async def take(self, message: bytes) -> bytes:
        """Hands a message on; after one that asks for it, waits until the server is ready and returns its state."""
        if message[:1] == b"X":
            raise ConnectionError
        self._writer.write(message)
        return await self._states.get() if message[:1] in b"QS" else b""

    async def _answers(self) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                answer = await _message(self._reader)
                assert self.client is not None
                self.client.write(answer)
                if answer[:1] == b"Z":
                    self._states.put_nowait(answer[5:])


async def _greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    (size,) = struct.unpack("!I", await reader.readexactly(4))
    given = (await reader.readexactly(size - 4))[4:].split(b"\0")[:-2:2]
    allowed = {b"user", b"database", b"client_encoding", b"application_name", b"TimeZone", b"timezone"}
    if unknown := set(given) - allowed:
        text = b"SFATAL\0C08P01\0Munsupported startup parameter: " + min(unknown) + b"\0\0"
        writer.write(b"E" + struct.pack("!I", len(text) + 4) + text)
        await writer.drain()
        raise ConnectionError
    for name, value in ((b"server_version", b"18.6"), (b"client_encoding", b"UTF8"), (b"TimeZone", b"UTC")):
        text = name + b"\0" + value + b"\0"
        writer.write(b"S" + struct.pack("!I", len(text) + 4) + text)
    writer.write(b"R" + struct.pack("!II", 8, 0) + b"K" + struct.pack("!III", 12, 4711, 1) + b"Z\0\0\0\5I")


async def _message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(5)
    return head + await reader.readexactly(struct.unpack("!I", head[1:])[0] - 4)


@pytest.mark.parametrize("transactions", [True, False])
async def test_a_pooler_is_told_by_what_it_does(source: Source, transactions: bool) -> None:
    async with Pooler(source, transactions=transactions).listening() as url:
        through = Source(dsn=url)
        with pytest.raises(pooler.TransactionPooling) if transactions else contextlib.nullcontext():
            await pooler.check(through)

    assert through.pooled


async def test_a_server_behind_a_pooler_in_transaction_mode_does_not_start(source: Source) -> None:
    async with Pooler(source, transactions=True).listening() as url:
        ran = await Terminal(source, DATABASE_URL=url).run(command="serve")

    assert ran.code == 7
    assert "pooler in transaction mode" in ran.talk
    assert len(ran.talk.strip().splitlines()) == 1


async def test_without_a_pooler_one_connection_is_enough(source: Source) -> None:
    await pooler.check(source)

    assert not source.pooled
