"""Measures mint, poll, inbound join and delivery beside the limit on the same PostgreSQL, in one run.

    make bench                                                   three interleaved rounds; writes bench/results/
    make bench ARGS="--rounds 1 --seconds 3 --connections 32"
    make bench ARGS="--seconds 60 --only mint poll join"         what a minute of load brings
    make bench ARGS="--workers 2"                                with two serving processes

Everything is on this machine: the server with its embedded, durable PostgreSQL, the load generator (wrk, from Debian)
and the receiver. The limit is pgbench, from the same wheel as the database: the same statement, the same table and
indexes, the same number of connections, no HTTP. Nothing but loopback is talked to; every phase is bounded.
"""

import argparse
import asyncio
import contextlib
import hashlib
import hmac
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import asyncpg
import msgspec

from wabery_server import accounts, ids, inbox, intents, tokens
from wabery_server.accounts import KeyDraft, ProjectChanges, ProjectDraft
from wabery_server.contacts import Identity
from wabery_server.db import LANE, OPERATOR, Database, Row, Source, Tx
from wabery_server.db.embedded import Embedded
from wabery_server.db.queries import for_rows
from wabery_server.db.statistics import gather
from wabery_server.idempotency import Stored
from wabery_server.inbox import Inbound
from wabery_server.intents import Intent, Mint, Status, Trust
from wabery_server.intents.intent import sql as intent_sql
from wabery_server.intents.mint import MAX_PENDING
from wabery_server.phone import payloads
from wabery_server.secrets import Keyring, Subkeys, hash_token
from wabery_server.whatsapp import PROVIDERS

HERE = Path(__file__).parent
LIFTED = {
    "WABERY_SECRET_KEY_PER_SECOND": "1000000",
    "WABERY_PUBLISHABLE_IP_PER_MINUTE": "100000000",
    "WABERY_PUBLISHABLE_KEY_PER_MINUTE": "100000000",
    "WABERY_POLLS_PER_MINUTE": "100000000",
    "WABERY_PUBLIC_READS_PER_MINUTE": "100000000",
    "WABERY_DELIVERY_ALLOW_NETWORKS": "127.0.0.0/8",
    "WABERY_DELIVERY_ALLOW_PORTS": "any",
    "WABERY_DELIVERY_PER_ENDPOINT": "256",
}
"""One client plays thousands: the limits are counted as always, but do not refuse."""
TENANTS = 100
POLLED = 100_000
PATIENCE_SECONDS = 120
MEASURED = ("mint", "mints", "poll", "join", "delivery")
JOINS_PER_SECOND = 5_000
"""More live tokens than a run can use up."""


def for_pgbench(statement: str, random: str, *values: str) -> str:
    """A statement of ours as pgbench runs it, with a random number n among its values."""
    filled = re.sub(r"\$(\d+)", lambda found: f"({values[int(found[1]) - 1]})", statement)
    return f"\\set n {random}\n{filled};\n"


INSERT = for_pgbench(
    intent_sql.insert,
    "random(1, 9000000000000000000)",
    *(
        ":project",
        "'reg_' || lpad(:n::text, 26, '0')",
        "'pgbench-' || :n::text",
        """'{"plan":"starter"}'""",
        "'server'",
    ),
    *(
        ":channel",
        ":key",
        "null",
        "sha256(int8send(:n::bigint))",
        "'abcdef'",
        "1",
        "now()",
        "now() + interval '1 day'",
    ),
    "''::bytea",
    str(MAX_PENDING),
    str(MAX_PENDING),
)
SELECT = for_pgbench(
    intent_sql.find,
    f"{TENANTS} * random(0, {POLLED // TENANTS - 1})",
    *(":project", "'reg_' || lpad(:n::text, 26, '0')"),
)


class Recording(Tx):
    """Runs statements, and keeps each as it was sent with its values."""

    __slots__ = ("sent",)

    def __init__(self, tx: Tx) -> None:
        super().__init__(tx._connection)
        self.sent: list[tuple[str, list[object]]] = []

    async def rows(self, sql: str, *values: object) -> list[Row]:
        self.sent.append((sql, [*values]))
        return await super().rows(sql, *values)

    async def row(self, sql: str, *values: object) -> Row | None:
        self.sent.append((sql, [*values]))
        return await super().row(sql, *values)

    async def run(self, sql: str, *values: object) -> None:
        self.sent.append((sql, [*values]))
        await super().run(sql, *values)

    async def rows_each(self, sql: str, many: Sequence[Sequence[object]]) -> list[Row]:
        self.sent += [(for_rows(sql, 1), [*values]) for values in many]
        return await super().rows_each(sql, many)

    async def count_each(self, sql: str, many: Sequence[Sequence[object]]) -> int:
        self.sent += [(for_rows(sql, 1), [*values]) for values in many]
        return await super().count_each(sql, many)


def as_sql(value: object, replaced: dict[object, str]) -> str:
    """A value as an expression. What differs from join to join is made from the number n."""
    if isinstance(value, str | bytes) and value in replaced:
        return replaced[value]
    if isinstance(value, str) and re.fullmatch(r"(contact|conv|msg|evt|link|dlv)_[0-9a-z]{26}", value):
        return f"'{value.partition('_')[0]}_' || lpad(:n::text, 26, '0')"
    if isinstance(value, datetime):
        return "now()"
    if isinstance(value, bytes):
        return f"'\\x{value.hex()}'::bytea"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, list | tuple):
        return f"array[{', '.join(as_sql(one, replaced) for one in value)}]::text[]"
    return "null" if value is None else str(value).lower()


@dataclass
class Tenant:
    project: accounts.Project
    channel: accounts.Channel
    app_secret: bytes
    secret_key: str
    publishable_key: str
    key_id: str


@dataclass
class Figure:
    """One row of the table, a value a round."""

    name: str
    rates: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    """Microseconds of the server process a request."""
    refused: int = 0


class Bench:
    """A server under load."""

    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        self.folder = folder
        self.seconds: int = arguments.seconds
        self.connections: int = arguments.connections
        self.workers: int = arguments.workers
        self.only: tuple[str, ...] = tuple(arguments.only)
        self._joins = ""
        self.figures: dict[str, Figure] = {}
        self.facts: dict[str, object] = {}
        self.tenants: list[Tenant] = []
        self._number = 0

    def run(self, rounds: int) -> None:
        with self._server() as server:
            asyncio.run(self._prepare())
            self._warm_up(server)
            self.facts["api processes after the warm-up, MB"] = round(server.memory() / 1e6, 1)
            for _ in range(rounds):
                self._round(server)

    def _warm_up(self, server: "Server") -> None:
        """A second of each, not measured; then the statistics that a worker gathers of tables that have grown."""
        seconds, self.seconds = self.seconds, 1
        self._mint(server, "warming up, mint", 100, idempotent=True)
        self._poll(server)
        self._inbound(server)
        self.seconds = seconds
        self.figures.clear()
        asyncio.run(self._gather_statistics())

    async def _gather_statistics(self) -> None:
        async with self.database() as database:
            await database.run(gather)

    def _round(self, server: "Server") -> None:
        if "mint" in self.only:
            self._pgbench("limit: insert, pgbench", INSERT)
            self._mint(server, "mint, 1 project", 1)
        if "mints" in self.only:
            self._mint(server, "mint, 100 projects", 100)
            self._mint(server, "mint, Idempotency-Key", 1, idempotent=True)
        if "poll" in self.only:
            self._pgbench("limit: select, pgbench", SELECT)
            self._poll(server)
        if "join" in self.only:
            first = asyncio.run(self._prepare_joins())
            joined = self._pgbench("limit: join, pgbench", self._joins, in_order=True)
            asyncio.run(self._must_have_joined(first, joined))
            self._inbound(server)
        if "delivery" in self.only:
            self._deliver()
        self.facts["api processes at the end, MB"] = round(server.memory() / 1e6, 1)

    def _mint(self, server: "Server", name: str, projects: int, *, idempotent: bool = False) -> None:
        keys = self.folder / f"keys-{projects}.txt"
        keys.write_text("".join(f"{tenant.secret_key}\n" for tenant in self.tenants[:projects]))
        self._number += 1
        self._wrk(server, name, "mint.lua", str(keys), f"u{self._number}-", "key" if idempotent else "no")

    def _poll(self, server: "Server") -> None:
        self._wrk(server, "poll", "poll.lua", str(self.folder / "polled.txt"))

    def _inbound(self, server: "Server") -> None:
        """As many live tokens, each from a person of its own, as the run can use up."""
        wanted = self.seconds * JOINS_PER_SECOND
        path = self.folder / "inbound.txt"
        asyncio.run(self.write_webhooks(path, wanted))
        self._wrk(server, "inbound join", "inbound.lua", str(path))

    async def _prepare(self) -> None:
        async with self.database() as database:
            await database.run(self.make_tenants)
            made = [self._new_mint(self.tenants[n % len(self.tenants)], f"polled-{n}") for n in range(POLLED)]
            for number, mint in enumerate(made):
                mint.intent.id = f"reg_{number:026}"  # which pgbench can make up too
            await self._insert(database, made)
            publishable = {tenant.project.id: tenant.publishable_key for tenant in self.tenants}
            with (self.folder / "polled.txt").open("w") as file:
                file.writelines(f"{publishable[m.intent.project_id]}\t{m.intent.id}\n" for m in made)
            sizes = await database.run(
                lambda tx: tx.rows("select version(), current_setting('shared_buffers')")
            )
            self.facts["postgresql"] = (
                sizes[0][0].split(" on ")[0] + f", shared_buffers {sizes[0][1]}, durable"
            )
        connection = await asyncpg.connect(**self.embedded.address.dsn_kwargs())
        await connection.execute("vacuum analyze")
        await connection.close()

    async def make_tenants(self, tx: Tx) -> None:
        self.tenants.clear()
        now = datetime.now(UTC)
        organization_id = await accounts.find_organization(tx)
        for number in range(TENANTS):
            draft = ProjectDraft(name=f"bench {number}")
            new = accounts.new_project(organization_id, draft, keyring=self.keyring, at=now)
            await accounts.create_project(tx, new, keyring=self.keyring, actor="cli:bench", at=now)
            project = new.project
            secret = accounts.new_key(project, KeyDraft(name="server", scopes=["full"]), now)
            public = accounts.new_key(project, KeyDraft(name="page", kind="publishable"), now)
            for key in (secret, public):
                await accounts.create_key(tx, key, actor="cli:bench", at=now)
            (channel,) = await accounts.list_channels(tx, project.id, limit=1)
            credentials = await accounts.unseal_credentials(tx, channel, keyring=self.keyring)
            app_secret = credentials.app_secrets[0].encode()
            self.tenants.append(
                Tenant(project, channel, app_secret, secret.value, public.value, secret.key.id)
            )

    def _new_mint(self, tenant: Tenant, reference: str) -> Mint:
        now = datetime.now(UTC)
        intent = Intent(
            project_id=tenant.project.id,
            id=ids.new("reg", now),
            status=Status.PENDING,
            customer_reference=reference,
            metadata=msgspec.Raw(b'{"plan":"starter"}'),
            reference_trust=Trust.SERVER,
            channel_id=tenant.channel.id,
            api_key_id=tenant.key_id,
            locale=None,
            secret_version=1,
            created_at=now,
            expires_at=now + timedelta(hours=24),
        )
        return Mint(tenant.project, intent, self.keyring.current.token(intent.id), Stored(200, b"{}"))

    async def _insert(self, database: Database, made: list[Mint]) -> None:
        for start in range(0, len(made), 500):
            part = made[start : start + 500]
            await database.run(
                lambda tx, part=part: intents.mint(tx, part, keyring=self.keyring, keep=timedelta(hours=24))  # type: ignore[misc]
            )

    async def write_webhooks(self, path: Path, wanted: int) -> None:
        self._number += 1
        made = [
            self._new_mint(self.tenants[n % len(self.tenants)], f"in{self._number}-{n}")
            for n in range(wanted)
        ]
        async with self.database() as database:
            await self._insert(database, made)
        at = datetime.now(UTC)
        with path.open("w") as file:
            for number, mint in enumerate(made):
                tenant = self.tenants[number % len(self.tenants)]
                serial = f"{self._number:03d}{number:07d}"
                body = payloads.meta_text(
                    phone_number_id=tenant.channel.phone_number_id,
                    display_phone_number=tenant.channel.display_phone_number,
                    waba_id=tenant.channel.waba_id,
                    text=f"Connect my account: {mint.token}",
                    sender=Identity(bsuid=f"DE.9{serial}", phone=f"49{serial}", profile_name="Bench"),
                    message_id=f"wamid.bench{serial}",
                    at=at,
                )
                signature = hmac.new(tenant.app_secret, body, hashlib.sha256).hexdigest()
                file.write(f"sha256={signature}\t{body.decode()}\n")

    async def _must_have_joined(self, first: int, wanted: int) -> None:
        """A script that joins nothing would be a fast one."""
        last = first + self.seconds * JOINS_PER_SECOND
        async with self.database() as database:
            (row,) = await database.run(
                lambda tx: tx.rows(
                    "select count(*) as joined from registration_intents i "
                    "where i.project_id = $1 and i.id between $2 and $3 and i.status = 'JOINED'",
                    self.tenants[0].project.id,
                    f"reg_{first:026}",
                    f"reg_{last:026}",
                )
            )
        if row["joined"] < wanted:
            raise SystemExit(f"pgbench ran {wanted} transactions, which joined {row['joined']} intents")

    async def _prepare_joins(self) -> int:
        """Writes the statements of one join as pgbench runs them, and the intents that it is to join.

        Returns the number before the first of these intents.
        """
        tenant, now = self.tenants[0], datetime.now(UTC)
        mint = self._new_mint(tenant, f"pgbench-join-{self._number}")
        body = payloads.meta_text(
            phone_number_id=tenant.channel.phone_number_id,
            display_phone_number=tenant.channel.display_phone_number,
            waba_id=tenant.channel.waba_id,
            text=f"Connect my account: {mint.token}",
            sender=Identity(bsuid=f"DE.8{self._number}", phone=f"488{self._number}", profile_name="Bench"),
            message_id=f"wamid.pgbench{self._number}",
            at=now,
        )
        (message,) = PROVIDERS["meta"].parse(body, now).changes[0].messages
        item = Inbound(tenant.channel, tenant.project, message, tokens.find(message.texts), now)
        sent: list[tuple[str, list[object]]] = []

        async def join(tx: Tx) -> None:
            recording = Recording(tx)
            await inbox.receive(recording, [item], grace=timedelta(minutes=5))
            sent[:] = recording.sent

        self._number += 1
        first = self._number * 10_000_000
        async with self.database() as database:
            await self._insert(database, [mint])
            await database.run(join)
            wanted = self.seconds * JOINS_PER_SECOND // self.connections
            await self._insert_numbered(database, first, wanted)
        hashed = hash_token(mint.token)
        replaced: dict[object, str] = {
            mint.intent.id: "'reg_' || lpad(:n::text, 26, '0')",
            hashed: "sha256(int8send(:n::bigint))",
            mint.intent.customer_reference: "'pgbench-join-' || :n::text",
            message.provider_message_id: "'wamid.pgbench' || :n::text",
            f"DE.8{self._number - 1}": "'DE.8' || :n::text",
            f"488{self._number - 1}": "'488' || :n::text",
        }
        statements = [
            re.sub(
                r"\$(\d+)", lambda found, v=values: f"({as_sql(v[int(found[1]) - 1], replaced)})", statement
            )  # type: ignore[misc]
            for statement, values in sent
        ]
        number = f"\\set k :k + 1\n\\set n {first} + :client_id * {wanted} + :k\n"
        self._joins = (
            number + "begin;\n" + "".join(f"{one.strip().rstrip(';')};\n" for one in statements) + "commit;\n"
        )
        return first

    async def _insert_numbered(self, database: Database, first: int, wanted: int) -> None:
        made = []
        for number in range(first + 1, first + wanted * self.connections + 1):
            mint = self._new_mint(self.tenants[0], f"pgbench-join-{number}")
            mint.intent.id = f"reg_{number:026}"
            made.append(mint)
        await self._insert(database, made)
        await database.run(
            lambda tx: tx.run(
                "update registration_intents set token_hash = sha256(int8send(right(id, 26)::bigint)) "
                "where project_id = $1 and id between $2 and $3",
                self.tenants[0].project.id,
                made[0].intent.id,
                made[-1].intent.id,
            )
        )

    def _deliver(self) -> None:
        """A backlog of events to one endpoint, from the worker's start to the last distinct event at the receiver."""
        wanted = self.seconds * 4_000
        with self._receiver() as url:
            asyncio.run(self._queue_deliveries(url, wanted))
            before = received(url)
            with self.process("worker") as worker:
                began, cpu = time.monotonic(), None
                while (seen := received(url) - before) < wanted:
                    if cpu is None and seen:
                        began, cpu, already = time.monotonic(), worker.cpu(), seen
                    worker.must_live(self.folder / "worker.log")
                    if time.monotonic() - began > PATIENCE_SECONDS:
                        raise SystemExit(f"only {seen} of {wanted} deliveries arrived")
                    time.sleep(0.01)
                seconds = time.monotonic() - began
                used = worker.cpu() - (cpu or 0.0)
            count = wanted - already
            figure = self.figures.setdefault("delivery, end to end", Figure("delivery, end to end"))
            figure.rates.append(count / seconds)
            figure.cpu.append(used / count * 1e6)
            asyncio.run(self._stop_deliveries())

    async def _queue_deliveries(self, url: str, wanted: int) -> None:
        from wabery_server import outbox
        from wabery_server.outbox import Event, EventType

        tenant = self.tenants[0]
        now = datetime.now(UTC)
        payload: dict[str, object] = {"customer_reference": "user_123", "text": "x" * 400}
        async with self.database() as database:
            changes = ProjectChanges(webhook_url=url)
            await database.run(
                lambda tx: accounts.update_project(
                    tx, tenant.project.id, changes, keyring=self.keyring, actor="cli:bench", at=now
                )
            )
            for _ in range(0, wanted, 500):
                events = [
                    Event(
                        id=ids.new("evt", now),
                        project_id=tenant.project.id,
                        type=EventType.MESSAGE_RECEIVED,
                        payload=dict(payload),
                        created_at=now,
                    )
                    for _ in range(500)
                ]
                await database.run(
                    lambda tx, e=events: outbox.record(tx, e, {tenant.project.id: tenant.project})  # type: ignore[misc]
                )

    async def _stop_deliveries(self) -> None:
        async with self.database() as database:
            await database.run(
                lambda tx: accounts.update_project(
                    tx,
                    self.tenants[0].project.id,
                    ProjectChanges(webhook_url=None),
                    keyring=self.keyring,
                    actor="cli:bench",
                    at=datetime.now(UTC),
                )
            )

    def _wrk(self, server: "Server", name: str, script: str, *arguments: str) -> None:
        command = [
            "wrk",
            "-t1",
            f"-c{self.connections}",
            f"-d{self.seconds}s",
            "--latency",
            "--timeout",
            "10s",
        ]
        command += ["-s", str(HERE / "wrk" / script), server.url, "--", *arguments]
        before = server.cpu()
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True)
        used = server.cpu() - before
        line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
        result = json.loads(line.removeprefix("RESULT "))
        figure = self.figures.setdefault(name, Figure(name))
        figure.rates.append(result["requests"] / result["seconds"])
        figure.p50.append(result["p50"])
        figure.p99.append(result["p99"])
        figure.cpu.append(used / max(result["requests"], 1) * 1e6)
        figure.refused += result["refused"] + result["broken"]
        say(f"{name:28} {figure.rates[-1]:9,.0f}/s  p50 {result['p50']:6.2f}  p99 {result['p99']:6.2f}")

    def _pgbench(self, name: str, statement: str, *, in_order: bool = False) -> int:
        """Returns the number of transactions. `in_order`: the script counts for each client in k, from 0."""
        script = self.folder / "pgbench.sql"
        script.write_text(statement)
        address = self.embedded.address
        environ = {
            "PATH": os.environ["PATH"],
            "PGPASSWORD": address.password or "",
            "PGOPTIONS": " ".join(f"-c {name}={value}" for name, value in LANE.items()),
        }
        tenant = self.tenants[0]
        command = [str(self.embedded.bin / "pgbench"), "-h", address.host, "-p", str(address.port)]
        command += ["-U", address.user, "-n", "-M", "prepared", "-c", str(self.connections), "-j", "1"]
        command += [
            "-T",
            str(self.seconds),
            "-D",
            f"project={tenant.project.id}",
            "-D",
            f"key={tenant.key_id}",
        ]
        if in_order:
            command += ["-D", "k=0"]
        command += [
            "-D",
            f"channel={tenant.channel.id}",
            "-f",
            str(script),
            address.database,
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False, env=environ
        )
        if done.returncode != 0:
            raise SystemExit(f"pgbench failed: {done.stderr[:2000]}")
        rate = next(float(line.split()[2]) for line in done.stdout.splitlines() if line.startswith("tps = "))
        self.figures.setdefault(name, Figure(name)).rates.append(rate)
        say(f"{name:28} {rate:9,.0f}/s")
        (count,) = re.findall(r"transactions actually processed: (\d+)", done.stdout)
        return int(count)

    def database(self) -> Database:
        return Database(Source(parts=self.embedded.address.dsn_kwargs(), patience=OPERATOR), pool_size=1)

    @property
    def keyring(self) -> Keyring:
        return Keyring(Subkeys((self.folder / "data" / "secret.key").read_text().strip()))

    @contextlib.contextmanager
    def _server(self) -> Iterator["Server"]:
        """A server on a PostgreSQL that this process owns: pgbench needs more connections than a server leaves."""
        for start in ("cold (with initdb)", "warm"):
            began = time.monotonic()
            with self._serving():
                self.facts[f"ready, {start}, s"] = round(time.monotonic() - began, 2)
        self.embedded = Embedded.open(self.folder / "data", settings={"max_connections": "200"})
        try:
            with self._serving() as server:
                yield server
        finally:
            self.embedded.close()

    @contextlib.contextmanager
    def _serving(self) -> Iterator["Server"]:
        settings = {"WABERY_PORT": "8499", "WABERY_DELIVER": "false", "WABERY_WORKERS": str(self.workers)}
        with self.process("serve", **settings) as server:
            server.url = "http://127.0.0.1:8499"
            server.wait()
            yield server

    @contextlib.contextmanager
    def process(self, command: str, **settings: str) -> Iterator["Server"]:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("WABERY_")}
        environ |= LIFTED | {"WABERY_DATA_DIR": str(self.folder / "data")} | settings
        # The log is written, as in production, to a file that nobody looks at.
        log = (self.folder / f"{command}.log").open("wb")
        arguments = [sys.executable, "-m", "wabery_server", command]
        with log, subprocess.Popen(arguments, env=environ, stderr=log) as process:
            try:
                yield Server(process, self.workers if command == "serve" else 1)
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(30)

    @contextlib.contextmanager
    def _receiver(self) -> Iterator[str]:
        command = [sys.executable, str(HERE / "receiver.py"), "--port", "0", "--record"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                where = process.stdout.readline().split()[-1]
                yield f"http://{where}/"
            finally:
                process.send_signal(signal.SIGTERM)


class Server:
    """A process of ours, and what the kernel says of it."""

    def __init__(self, process: "subprocess.Popen[bytes]", workers: int = 1) -> None:
        self._process = process
        self._workers = workers
        self.url = ""

    def wait(self) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/readyz", timeout=2):
                return
            time.sleep(0.01)
        raise SystemExit("the server did not become ready")

    def must_live(self, log: Path) -> None:
        if self._process.poll() is not None:
            raise SystemExit(f"the process ended: {log.read_text()[-2000:]}")

    def cpu(self) -> float:
        """Seconds of user and system time so far, of the process or of its serving children."""
        return sum(cpu_of(pid) for pid in self._serving())

    def memory(self) -> int:
        """Bytes of resident memory, of the process or of its serving children."""
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self._serving())
        return pages * os.sysconf("SC_PAGE_SIZE")

    def _serving(self) -> list[int]:
        if self._workers == 1:
            return [self._process.pid]
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return [int(pid) for pid in children if b"wabery_server" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def cpu_of(process: int) -> float:
    """Seconds of user and system time that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def received(url: str) -> int:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return int(json.load(answer)["distinct"])


def table(bench: Bench) -> str:
    """The results as Markdown, with what they are to be compared with."""
    lines = ["| | median/s | best/s | of pgbench | p50 ms | p99 ms | CPU us | refused |", "|-|-|-|-|-|-|-|-|"]
    limits = {
        "mint": "limit: insert, pgbench",
        "poll": "limit: select, pgbench",
        "inbound join": "limit: join, pgbench",
    }
    for figure in bench.figures.values():
        limit = bench.figures.get(limits.get(figure.name.split(",")[0], ""))
        median = statistics.median(figure.rates)
        ratio = f"{median / statistics.median(limit.rates):.2f}" if limit else ""
        p50, p99, cpu = (
            f"{statistics.median(values):.{digits}f}" if values else ""
            for values, digits in ((figure.p50, 1), (figure.p99, 1), (figure.cpu, 0))
        )
        lines.append(
            f"| {figure.name} | {median:,.0f} | {max(figure.rates):,.0f} | {ratio} | {p50} | {p99} | {cpu} "
            f"| {figure.refused} |"
        )
    return "\n".join(lines)


def hardware() -> dict[str, object]:
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    packages = (
        "wabery-server",
        "starlette",
        "uvloop",
        "httptools",
        "msgspec",
        "asyncpg",
        "aiohttp",
    )
    return {
        "machine": f"{os.cpu_count()} cores, {model}",
        "load before the run": f"{os.getloadavg()[0]:.2f}",
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, choices=range(1, 11))
    parser.add_argument("--seconds", type=int, default=8, choices=range(1, 61), help="of each measurement")
    parser.add_argument("--connections", type=int, default=32, choices=range(1, 513))
    parser.add_argument("--workers", type=int, default=1, choices=range(1, 9), help="serving processes")
    parser.add_argument("--only", nargs="+", default=MEASURED, choices=MEASURED, help="what to measure")
    parser.add_argument("--write", action="store_true", help="write the table to bench/results/")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("The load generator is missing: apt-get install wrk")
    before = hardware()
    with tempfile.TemporaryDirectory(prefix="wabery-bench-") as folder:
        bench = Bench(Path(folder), arguments)
        bench.run(arguments.rounds)
    facts = before | bench.facts
    what = f"{arguments.rounds} rounds of {arguments.seconds} s, {arguments.connections} connections"
    what += f", {arguments.workers} workers" if arguments.workers > 1 else ""
    text = "\n".join(
        [
            f"# {datetime.now(UTC):%Y-%m-%d}: {what}",
            "",
            table(bench),
            "",
            *(f"- {k}: {v}" for k, v in facts.items()),
        ]
    )
    print(text)
    if arguments.write:
        (HERE / "results").mkdir(exist_ok=True)
        how = f"c{arguments.connections}"
        how += f"-{arguments.seconds}s" if arguments.seconds >= 30 else ""
        how += f"-w{arguments.workers}" if arguments.workers > 1 else ""
        path = HERE / "results" / f"{datetime.now(UTC):%Y-%m-%d}-{how}.md"
        path.write_text(text + "\n")
        say(f"written to {path}")


if __name__ == "__main__":
    main()
