"""Measures what a bulk of 1,000 intents with QR codes does to the others: their mints and polls before it and during it.

    python bench/bulk.py                 one bulk at a time, and twelve at once
    python bench/bulk.py --qr no         without the codes

Sixteen customers of other projects mint and poll, each with a short pause, so that the machine is busy but not full: about
400 requests a second. The bulks are those of one project. The load generator is this process, next to the server on the
same cores. Bounded: half a minute or so.
"""

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

import aiohttp
from run import Bench, Tenant

CUSTOMERS = 16
PAUSE_SECONDS = 0.02
SECONDS = 4.0
ITEMS = 1_000
INTENTS = "/v1/registration-intents"


class Others:
    """Customers at work; keeps how long each request took, in milliseconds."""

    def __init__(self, url: str, tenants: list[Tenant]) -> None:
        self._url = url
        self._tenants = tenants
        self._number = 0
        self.took: list[float] = []

    async def work(self, web: aiohttp.ClientSession, until: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(CUSTOMERS):
                group.create_task(self._customer(web, self._tenants[number % len(self._tenants)], until))

    async def _customer(self, web: aiohttp.ClientSession, tenant: Tenant, until: asyncio.Event) -> None:
        headers = {"Authorization": f"Bearer {tenant.secret_key}"}
        while not until.is_set():
            self._number += 1
            body = {"customer_reference": f"others-{self._number}"}
            minted = await self._timed(web, "POST", INTENTS, headers=headers, json=body)
            await self._timed(web, "GET", f"{INTENTS}/{minted['id']}", headers=headers)
            await asyncio.sleep(PAUSE_SECONDS)

    async def _timed(
        self, web: aiohttp.ClientSession, method: str, path: str, **what: object
    ) -> dict[str, object]:
        began = time.perf_counter()
        async with web.request(method, self._url + path, **what) as answer:  # type: ignore[arg-type]
            found: dict[str, object] = await answer.json()
        self.took.append((time.perf_counter() - began) * 1000)
        if answer.status != 200:
            raise SystemExit(f"{method} {path} was answered {answer.status}: {found}")
        return found

    def line(self, name: str, bulk: float | None) -> str:
        took = sorted(self.took)
        p50, p99 = took[len(took) // 2], took[int(len(took) * 0.99)]
        shown = "" if bulk is None else f"{bulk:.1f}"
        return f"| {name} | {len(took)} | {p50:.1f} | {p99:.1f} | {took[-1]:.1f} | {shown} |"


async def measure(bench: Bench, url: str, *, qr: bool) -> list[str]:
    async with bench.database() as database:
        await database.run(bench.make_tenants)
    maker, *others = bench.tenants
    lines = [
        "| | requests of others | p50 ms | p99 ms | worst ms | a bulk takes s |",
        "|-|-|-|-|-|-|",
    ]
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=100)) as web:
        for name, at_once in (("warming up", 0), ("in peace", 0), ("one bulk", 1), ("twelve bulks", 12)):
            working, done = Others(url, others[:CUSTOMERS]), asyncio.Event()
            task = asyncio.create_task(working.work(web, done))
            took: list[float] = []
            end = time.perf_counter() + SECONDS
            while time.perf_counter() < end:
                if at_once:
                    took += await asyncio.gather(
                        *[
                            bulk(web, url, maker, f"{name}-{time.time_ns()}-{n}", qr=qr)
                            for n in range(at_once)
                        ]
                    )
                else:
                    await asyncio.sleep(SECONDS)
            done.set()
            await task
            lines.append(working.line(name, sorted(took)[len(took) // 2] if took else None))
    del lines[2]
    return lines


async def bulk(web: aiohttp.ClientSession, url: str, maker: Tenant, name: str, *, qr: bool) -> float:
    """Seconds until its answer."""
    include = ["qr"] if qr else []
    items = [{"customer_reference": f"{name}-{n}", "include": include} for n in range(ITEMS)]
    headers = {"Authorization": f"Bearer {maker.secret_key}"}
    began = time.perf_counter()
    async with web.post(f"{url}{INTENTS}/bulk", headers=headers, json={"items": items}) as answer:
        await answer.read()
        if answer.status != 200:
            raise SystemExit(f"a bulk was answered {answer.status}: {await answer.text()}")
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--qr", choices=("yes", "no"), default="yes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wabery-bench-") as folder:
        settings = argparse.Namespace(seconds=1, connections=CUSTOMERS, workers=1, only=())
        bench = Bench(Path(folder), settings)
        with bench._server() as server:
            lines = asyncio.run(measure(bench, server.url, qr=arguments.qr == "yes"))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
