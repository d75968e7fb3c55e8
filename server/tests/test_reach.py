"""No key reaches further than its own scopes and its own end, whatever it does to keys; and no dead key comes back."""

from datetime import timedelta
from itertools import product
from typing import Any, NamedTuple

import pytest
from world import INTENTS, App, Reply, Tenant

from wabery_server.accounts import Scope
from wabery_server.clock import MovableClock, iso

KEYS = "/v1/api-keys"
HOUR = timedelta(hours=1)

CALLERS = {
    "full": ["full"],
    "keys only": ["keys:write"],
    "keys and reading": ["keys:write", "registrations:read"],
    "keys and minting": ["keys:write", "registrations:create"],
}
TARGETS: dict[str, dict[str, Any]] = {
    "full": {"scopes": ["full"]},
    "reader": {"scopes": ["registrations:read"]},
    "keys only": {"scopes": ["keys:write"]},
    "page": {"kind": "publishable", "allowed_origins": ["https://a.example"]},
}
WRITES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "never expire": ("PATCH", "", {"expires_at": None}),
    "expire later": ("PATCH", "", {"expires_at": 3 * HOUR}),
    "expire sooner": ("PATCH", "", {"expires_at": HOUR / 2}),
    "any origin": ("PATCH", "", {"allowed_origins": []}),
    "another origin": ("PATCH", "", {"allowed_origins": ["https://a.example", "https://evil.example"]}),
    "rename": ("PATCH", "", {"name": "renamed"}),
    "rotate": ("POST", "/rotate", {"overlap": 0}),
    "rotate with overlap": ("POST", "/rotate", {"overlap": 604_800}),
}
WIDENS = {"never expire", "expire later", "any origin", "another origin", "rotate", "rotate with overlap"}
OF_PAGES = {"any origin", "another origin"}
STATES = ("alive", "expired", "revoked")


def scopes(names: list[str]) -> set[str]:
    return set(Scope) if names == ["full"] else set(names)


async def make(app: App, owner: Tenant, **fields: Any) -> dict[str, Any]:
    reply = await app.call("POST", KEYS, owner.secret_key, json={"name": "new", **fields})
    assert reply.status == 200, reply.body
    return dict(reply.body)


async def works(app: App, value: str) -> bool:
    """Whether the server takes a key at all."""
    headers = {"Origin": "https://a.example"} if value.startswith("wab_pub_") else {}
    reply = await app.call("GET", f"{INTENTS}/reg_{0:026}", value, headers=headers)
    return reply.status != 401


class Case(NamedTuple):
    caller: str
    target: str
    write: str
    state: str

    @property
    def expected(self) -> tuple[int, str | None]:
        lacks = (scopes(TARGETS[self.target].get("scopes", [])) or {"registrations:create"}) - scopes(
            CALLERS[self.caller]
        )
        widens = self.write in WIDENS or (self.write == "expire sooner" and self.state == "expired")
        if lacks and widens:
            return 403, "insufficient_scope"
        if self.state != "alive" and self.write != "rename":
            return 409, "key_revoked"
        return 200, None


CASES = [
    case
    for case in (Case(*one) for one in product(CALLERS, TARGETS, WRITES, STATES))
    if case.write not in OF_PAGES or case.target == "page"
]


@pytest.mark.parametrize("caller", CALLERS)
async def test_every_write_by_every_caller_on_every_key(
    app: App, acme: Tenant, clock: MovableClock, caller: str
) -> None:
    """The whole table: what a caller may do to a key of each kind, alive, expired and revoked."""
    presented = (await make(app, acme, scopes=CALLERS[caller]))["key"]
    wrong: list[tuple[Case, object]] = []
    expiring: list[tuple[Case, dict[str, Any]]] = []
    for case in CASES:
        if case.caller == caller:
            ends = clock.now() + (HOUR if case.state != "expired" else timedelta(minutes=1))
            expiring.append((case, await make(app, acme, **TARGETS[case.target], expires_at=iso(ends))))
    clock.move(timedelta(minutes=2))

    for case, key in expiring:
        if case.state == "revoked":
            await app.call("DELETE", f"{KEYS}/{key['id']}", acme.secret_key)
        method, path, body = WRITES[case.write]
        if isinstance(after := body.get("expires_at"), timedelta):
            body = {"expires_at": iso(clock.now() + after)}
        reply = await app.call(method, f"{KEYS}/{key['id']}{path}", presented, json=body)
        told = (reply.status, reply.body.get("error"))
        values = [key["key"], *([reply.body["key"]] if reply.status == 200 and reply.body["key"] else [])]
        revived = case.state != "alive" and any([await works(app, value) for value in values])
        if told != case.expected or revived:
            wrong.append((case, (told, revived)))

    assert wrong == []


@pytest.mark.parametrize("caller", CALLERS)
async def test_a_key_creates_and_revokes(app: App, acme: Tenant, caller: str) -> None:
    """It creates only what it could do itself; revoking takes nothing but `keys:write`, since it widens nothing."""
    presented = (await make(app, acme, scopes=CALLERS[caller]))["key"]

    created, revoked = {}, {}
    for name, target in TARGETS.items():
        made = await app.call("POST", KEYS, presented, json={"name": "new", **target})
        created[name] = made.status
        key = await make(app, acme, **target)
        revoked[name] = (await app.call("DELETE", f"{KEYS}/{key['id']}", presented)).status

    needed = {
        name: scopes(target.get("scopes", [])) or {"registrations:create"} for name, target in TARGETS.items()
    }
    assert created == {name: 200 if of <= scopes(CALLERS[caller]) else 403 for name, of in needed.items()}
    assert set(revoked.values()) == {200}


async def test_an_expired_full_key_stays_dead(app: App, acme: Tenant, clock: MovableClock) -> None:
    lesser = (await make(app, acme, scopes=["keys:write"]))["key"]
    full = await make(app, acme, scopes=["full"], expires_at=iso(clock.now() + timedelta(seconds=3)))
    clock.move(timedelta(seconds=4))

    by_lesser = await app.call("PATCH", f"{KEYS}/{full['id']}", lesser, json={"expires_at": None})
    by_full = await app.call("PATCH", f"{KEYS}/{full['id']}", acme.secret_key, json={"expires_at": None})

    assert (by_lesser.status, by_lesser.body["error"]) == (403, "insufficient_scope")
    assert (by_full.status, by_full.body["error"]) == (409, "key_revoked")
    assert "expired" in by_full.body["message"]
    assert (await app.call("GET", KEYS, full["key"])).body["error"] == "key_expired"


async def test_a_key_that_ends_makes_nothing_work_longer(app: App, acme: Tenant, clock: MovableClock) -> None:
    ends_at = iso(clock.now() + HOUR)
    mine = await make(app, acme, scopes=["full"], expires_at=ends_at)
    endless = await make(app, acme, scopes=["full"])

    async def call(method: str, path: str, body: object) -> Reply:
        return await app.call(method, f"{KEYS}{path}", mine["key"], json=body)

    replies = [
        await call("POST", "", {"name": "heir", "scopes": ["full"]}),
        await call(
            "POST", "", {"name": "heir", "scopes": ["full"], "expires_at": iso(clock.now() + 2 * HOUR)}
        ),
        await call("PATCH", f"/{mine['id']}", {"expires_at": None}),
        await call("POST", f"/{endless['id']}/rotate", {}),
    ]
    equal = await call("POST", "", {"name": "equal", "scopes": ["full"], "expires_at": ends_at})
    rotated = await call("POST", f"/{mine['id']}/rotate", {})

    for reply in replies:
        assert (reply.status, reply.body["error"], reply.body["param"]) == (
            403,
            "insufficient_scope",
            "expires_at",
        )
    assert (equal.status, rotated.status) == (200, 200)
    assert rotated.body["expires_at"] == ends_at


async def test_a_value_that_was_rotated_away_gets_no_new_one(app: App, acme: Tenant) -> None:
    old = await make(app, acme, scopes=["full"])
    new = (await app.call("POST", f"{KEYS}/{old['id']}/rotate", acme.secret_key, json={"overlap": 60})).body

    by_old = await app.call("POST", f"{KEYS}/{old['id']}/rotate", old["key"], json={"overlap": 0})
    by_new = await app.call("POST", f"{KEYS}/{old['id']}/rotate", new["key"], json={"overlap": 0})

    assert (by_old.status, by_old.body["error"]) == (403, "insufficient_scope")
    assert by_new.status == 200


async def test_the_first_key_of_a_new_project_ends_with_its_maker(
    app: App, acme: Tenant, clock: MovableClock
) -> None:
    ends_at = iso(clock.now() + HOUR)
    maker = await make(app, acme, scopes=["projects:write", "keys:write"], expires_at=ends_at)

    made = await app.call("POST", "/v1/projects", maker["key"], json={"name": "Initech"})

    assert made.body["api_key"]["expires_at"] == ends_at
    assert made.body["api_key"]["scopes"] == ["keys:write", "projects:write"]
