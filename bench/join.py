"""Measures where the time of an inbound join goes, for anybody who asks why it takes what it takes.

    python bench/join.py            prints the tables of bench/README.md

In one process and without a load generator: the request with its database left out, then batches of joins on one lane with
an embedded, durable PostgreSQL, whose pg_stat_statements says what each statement takes. As in run.py a join is a person
never met before with a live token, over 100 projects. Bounded: about 12,000 joins, a minute.
"""

import argparse
import re
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import uvloop
from run import Bench, cpu_of
from starlette.types import Message, Receive

from wabery_server import inbox, logs, tokens
from wabery_server.accounts import Directory
from wabery_server.api.app import application
from wabery_server.api.routes import OPERATIONS
from wabery_server.api.service import Service
from wabery_server.clock import SystemClock
from wabery_server.db import Database, Lane, Tx
from wabery_server.db.embedded import Embedded
from wabery_server.db.queries import parse
from wabery_server.db.signals import Signals
from wabery_server.db.statistics import gather
from wabery_server.inbox import Inbound, Outcome, Received
from wabery_server.intents import Attempt
from wabery_server.main import quicken_gc
from wabery_server.settings import Settings
from wabery_server.whatsapp import PROVIDERS

SIZES = (1, 8, 16, 31)
BATCHES = 40
ROUNDS = 5
REQUESTS = 2_000
WANTED = (4 + ROUNDS * BATCHES) * sum(SIZES) + BATCHES * SIZES[-1]
GRACE = timedelta(minutes=5)
PACKAGE = Path(inbox.__file__).parent


class Joins(Bench):
    """The inhabitants of run.py, and joins one batch at a time."""

    def measure(self) -> None:
        with self.process("serve", WABERY_PORT="8499", WABERY_DELIVER="false") as server:
            server.url = "http://127.0.0.1:8499"
            server.wait()  # the database is there, with its tables and its secret
        preload = {"shared_preload_libraries": "pg_stat_statements"}
        self.embedded = Embedded.open(self.folder / "data", settings=preload)
        try:
            uvloop.run(self._measure())
        finally:
            self.embedded.close()

    async def _measure(self) -> None:
        path = self.folder / "webhooks.txt"
        async with self.database() as database:
            await database.run(self.make_tenants)
            await self.write_webhooks(path, WANTED)
            posts = [line.rstrip("\n").split("\t", 1) for line in path.read_text().splitlines()]
            logs.configure("info", stream=(self.folder / "log").open("w"))
            async with Signals(database.source) as signals:
                await self._requests(database, signals, posts[:REQUESTS])
            items = [self._item(number, body.encode()) for number, (_, body) in enumerate(posts)]
            await self._batches(database, items)

    async def _requests(self, database: Database, signals: Signals, posts: list[list[str]]) -> None:
        """The application's part of a request; what would be committed is answered at once."""
        joined = Received(Outcome.ATTEMPT, "msg_" + "0" * 26, Attempt.JOINED, "reg_" + "0" * 26)
        status: list[object] = []

        async def receive_one(_item: Inbound) -> Received:
            return joined

        async def send(message: Message) -> None:
            status.append(message.get("status"))

        clock = SystemClock()
        async with Directory(database, self.keyring, signals, clock) as directory:
            service = Service(
                Settings(),
                database=database,
                keyring=self.keyring,
                clock=clock,
                signals=signals,
                directory=directory,
            )
            service.receive_one = receive_one  # type: ignore[method-assign]  # the database is left out
            app = application(service, OPERATIONS, [])
            took = []
            for _ in range(ROUNDS):
                status.clear()
                began = time.process_time()
                for signature, body in posts:
                    await app(_scope(signature, body), _receiving(body.encode()), send)
                took.append((time.process_time() - began) / len(posts) * 1e6)
            assert status.count(200) == len(posts), "every request joins"
        print(
            f"The application's part of a request, without HTTP and database: {min(took):.0f} us, best of {ROUNDS}.\n"
        )

    async def _batches(self, database: Database, items: list[Inbound]) -> None:
        lane = database.lane()
        waiting = iter(items)

        async def join(size: int) -> None:
            batch = [next(waiting) for _ in range(size)]
            received = await lane.run(lambda tx: inbox.receive(tx, batch, grace=GRACE))
            assert {one.attempt for one in received} == {Attempt.JOINED}

        for size in SIZES * 4:  # prepares the statements, and gives the tables something to be analysed
            await join(size)
        await database.run(gather)
        await database.run(lambda tx: tx.run("create extension pg_stat_statements"))
        quicken_gc()
        process = await _process_of(lane)
        server: dict[int, float] = {}
        postgres: dict[int, float] = {}
        for _ in range(ROUNDS):
            for size in SIZES:
                began, began_there = time.process_time(), cpu_of(process)
                for _ in range(BATCHES):
                    await join(size)
                share = 1e6 / (ROUNDS * BATCHES * size)
                server[size] = server.get(size, 0.0) + (time.process_time() - began) * share
                postgres[size] = postgres.get(size, 0.0) + (cpu_of(process) - began_there) * share
        print("| Joins in a batch | CPU us a join, server | PostgreSQL |\n|-|-|-|")
        for size in SIZES:
            print(f"| {size} | {server[size]:.0f} | {postgres[size]:.0f} |")
        await database.run(lambda tx: tx.rows("select pg_stat_statements_reset()"))
        for _ in range(BATCHES):
            await join(SIZES[-1])
        print(f"\n| Statement, in batches of {SIZES[-1]} | us a join |\n|-|-|")
        for name, microseconds in await database.run(_by_statement):
            print(f"| {name} | {microseconds / BATCHES / SIZES[-1]:.1f} |")

    def _item(self, number: int, body: bytes) -> Inbound:
        now = datetime.now(UTC)
        tenant = self.tenants[number % len(self.tenants)]
        (message,) = PROVIDERS["meta"].parse(body, now).changes[0].messages
        return Inbound(tenant.channel, tenant.project, message, tokens.find(message.texts), now)


async def _by_statement(tx: Tx) -> list[tuple[str, float]]:
    """Microseconds by the statement's name, the dearest first. Receiving, parsing and answering are not in them."""
    names = {}
    for path in PACKAGE.rglob("*.sql"):
        if PACKAGE / "db" in path.parents:  # the data model, not statements
            continue
        for query in parse(path.read_text()).values():
            names[_shape(query.text)] = f"`{path.relative_to(PACKAGE).with_suffix('')}: {query.name}`"
    took: dict[str, float] = {}
    for row in await tx.rows(
        "select query, total_exec_time from pg_stat_statements where calls >= $1", BATCHES
    ):
        name = names.get(_shape(row["query"]), f"`{row['query'][:20]}`")
        took[name] = took.get(name, 0.0) + row["total_exec_time"] * 1000
    return sorted(took.items(), key=lambda one: -one[1])


def _shape(text: str) -> str:
    """A statement whatever its number of rows."""
    return re.sub(r"\(\$\d[^()]*\)(, \(\$\d[^()]*\))*", "(…)", " ".join(text.split()))


async def _process_of(lane: Lane) -> int:
    async def process(tx: Tx) -> int:
        (row,) = await tx.rows("select pg_backend_pid() as process")
        return int(row["process"])

    return await lane.run(process)


def _scope(signature: str, body: str) -> dict[str, object]:
    headers = {
        "x-hub-signature-256": signature,
        "content-type": "application/json",
        "content-length": str(len(body)),
    }
    return {
        "type": "http",
        "method": "POST",
        "path": "/inbound/whatsapp",
        "query_string": b"",
        "client": ("127.0.0.1", 40_000),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }


def _receiving(body: bytes) -> Receive:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="wabery-bench-") as folder:
        Joins(Path(folder), argparse.Namespace(seconds=1, connections=1, workers=1, only=())).measure()


if __name__ == "__main__":
    main()
