"""Where a webhook may go: the guard against server-side request forgery.

A customer's URL is judged three times, each time by what the next step will really use:

1. `parse_url`: scheme, user info, port, host, length, before anything is looked up;
2. `Resolver`: every address of the DNS answer, and one bad address refuses the whole answer;
3. `socket_factory`: the very address a socket is about to connect to, literals included.

The addresses judged are those connected to; no name is looked up a second time. Sockaddrs are judged, never host
text: getaddrinfo takes `0x7f.1` and `010.0.0.1`, `ipaddress` does not. The ranges are our own table, because
`ipaddress.is_global` lets several of them pass (NAT64, 6to4, multicast, 168.63.129.16) and changes between releases.
"""

import asyncio
import re
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Literal, TypeVar
from urllib.parse import quote
from weakref import WeakValueDictionary

from aiohttp import AddrInfoType, SocketFactoryType
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from wabery_server.settings import Settings

Network = IPv4Network | IPv6Network
T = TypeVar("T")
Lookup = Callable[[str], Sequence[AddrInfoType]]
"""A blocking look-up of a name, as getaddrinfo answers it."""

LOOPBACK: tuple[Network, ...] = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
LONGEST_URL = 2048

_DENIED_V4 = {
    ip_network("0.0.0.0/8"): "this network",
    ip_network("10.0.0.0/8"): "a private network",
    ip_network("100.64.0.0/10"): "carrier-grade NAT",
    ip_network("127.0.0.0/8"): "loopback",
    ip_network("169.254.0.0/16"): "link-local, where clouds keep their metadata",
    ip_network("172.16.0.0/12"): "a private network",
    ip_network("192.0.0.0/24"): "protocol assignments",
    ip_network("192.0.2.0/24"): "documentation",
    ip_network("192.88.99.0/24"): "a 6to4 relay",
    ip_network("192.168.0.0/16"): "a private network",
    ip_network("198.18.0.0/15"): "benchmarking",
    ip_network("198.51.100.0/24"): "documentation",
    ip_network("203.0.113.0/24"): "documentation",
    ip_network("224.0.0.0/4"): "multicast",
    ip_network("240.0.0.0/4"): "reserved",
    ip_network("168.63.129.16/32"): "the Azure platform",
}
_GLOBAL_V6 = ip_network("2000::/3")
_DENIED_V6 = {
    ip_network("2001::/32"): "Teredo",
    ip_network("2001:db8::/32"): "documentation",
    ip_network("2002::/16"): "6to4",
    ip_network("3fff::/20"): "documentation",
}
_V4_INSIDE = (ip_network("::ffff:0:0/96"), ip_network("::/96"), ip_network("64:ff9b::/96"))
"""IPv4-mapped, IPv4-compatible, NAT64. The last must not be denied as such: hosts without IPv4 reach all through it."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What an operator allows beyond https to public addresses on the usual ports."""

    allow_http: bool = False
    """Test mode; or an operator's choice."""
    allow_ports: frozenset[int] | None = frozenset()
    """Beside 80 and 443. None: any."""
    allow_networks: tuple[Network, ...] = ()
    """Addresses that may be reached although the table denies them."""


def policy(settings: Settings, *, livemode: bool) -> Policy:
    """What the operator's settings allow for the webhooks of live and of test projects."""
    ports = settings.delivery_allow_ports
    return Policy(
        allow_http=settings.delivery_allow_http or not livemode,
        allow_ports=None if ports is None else frozenset(ports),
        allow_networks=settings.delivery_allow_networks,
    )


Reason = Literal["malformed", "length", "scheme", "userinfo", "port", "host", "address"]


class UnsafeUrl(Exception):
    """A URL that webhooks are not sent to. `message` is a sentence for whoever set the URL."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


# The three below are OSErrors because aiohttp passes only those through its connector in order.


class Blocked(OSError):
    """A name or literal leads to an address that webhooks may not go to."""

    def __init__(self, message: str, address: str) -> None:
        super().__init__(message)
        self.address = address


class Unresolved(OSError):
    """The endpoint's name has no address, or its DNS servers do not say."""


class ResolverDown(OSError):
    """Our own resolver answers no name, or no thread is free: not the endpoint's fault."""


def check_url(url: str, policy: Policy) -> None:
    """Check a URL when it is set, as far as that is possible without a look-up. Raises UnsafeUrl.

    Stricter than `parse_url`: path and query are requested exactly as they are stored, so they must be ASCII.
    """
    parse_url(url, policy)
    if not _split(url)[2].isascii():
        raise UnsafeUrl(
            "malformed",
            "The path or query of the URL contains characters outside ASCII; percent-encode them, for example %C3%A9 for é.",
        )


def parse_url(url: str, policy: Policy) -> URL:
    """The URL to request: the host in IDNA form, path and query byte for byte. Raises UnsafeUrl.

    Path and query both stand in the result's path, so that no library normalises or re-encodes either of them. The
    fragment is left out, since it is never sent. URLs stored before `check_url` required ASCII are encoded as UTF-8.
    """
    if len(url) > LONGEST_URL:
        raise UnsafeUrl("length", f"The URL is longer than {LONGEST_URL} characters.")
    if _UNPRINTABLE.search(url):
        # The parser would silently drop some of these and so request another URL than the one shown.
        raise UnsafeUrl(
            "malformed", "The URL contains white space or control characters; percent-encode them."
        )
    scheme, authority, target = _split(url)
    if scheme not in ("https", "http") or (scheme == "http" and not policy.allow_http):
        raise UnsafeUrl(
            "scheme", f"The URL must start with https://{' or http://' if policy.allow_http else ''}."
        )
    try:
        parsed = URL(f"{scheme}://{authority}/")
        host, port = parsed.raw_host or "", parsed.port
    except ValueError as failure:
        raise UnsafeUrl("malformed", f"The URL cannot be read: {str(failure).rstrip('.')}.") from failure
    if "@" in authority:
        raise UnsafeUrl("userinfo", "The URL must not contain a user name or password.")
    shown_port = authority.rpartition("]")[2].partition(":")[2]
    if shown_port and not (shown_port.isascii() and shown_port.isdigit()):
        # yarl's `int` takes `+80`, `8_0` and `٨٠` too.
        raise UnsafeUrl("malformed", "The port of the URL is not a number from 1 to 65535.")
    if port == 0:
        raise UnsafeUrl("port", "Port 0 cannot be connected to; use a port from 1 to 65535.")
    if port not in (80, 443) and policy.allow_ports is not None and port not in policy.allow_ports:
        raise UnsafeUrl("port", f"Port {port} is not allowed; webhooks are sent to ports 80 and 443.")
    _check_host(host, policy)
    if not target.startswith("/"):
        target = "/" + target
    return parsed.with_path(quote(target, safe=_ASCII), encoded=True)


def _split(url: str) -> tuple[str, str, str]:
    """Scheme in lower case, authority, and path with query; without the fragment. An empty scheme: there is none."""
    found = _URL.match(url)
    return (found[1].lower(), found[2], found[3]) if found else ("", "", "")


_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^#]*)")
_ASCII = "".join(map(chr, range(0x21, 0x7F)))
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f-\xa0\u2028\u2029\ud800-\udfff]")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\.?\Z)(?:{_LABEL}\.)*{_LABEL}\.?")
_ENDS_IN_A_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)\.?")
"""An IPv4 address in one of its many spellings (WHATWG URL, "ends in a number"); only the canonical one is taken."""


def _check_host(host: str, policy: Policy) -> None:
    try:
        address = ip_address(host)
    except ValueError:
        if _NAME.fullmatch(host) and not _ENDS_IN_A_NUMBER.fullmatch(host):
            return
        raise UnsafeUrl("host", f"{host[:80] or 'An empty host'} is not a host name.") from None
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise UnsafeUrl("host", "An address with a zone belongs to one machine's network and is not allowed.")
    if what := refusal(host, policy):
        raise UnsafeUrl("address", f"{host} is {what}; webhooks are sent to public addresses only.")


def refusal(address: str, policy: Policy) -> str | None:
    """What an address is, if webhooks may not go to it; None if they may. `address` is that of a sockaddr."""
    ip = _unwrap(ip_address(address))
    if any(ip in network for network in policy.allow_networks):
        return None
    if isinstance(ip, IPv4Address):
        return next((what for network, what in _DENIED_V4.items() if ip in network), None)
    if ip not in _GLOBAL_V6:
        return "loopback" if ip.is_loopback else "outside the public IPv6 range"
    return next((what for network, what in _DENIED_V6.items() if ip in network), None)


def _unwrap(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that an IPv6 one stands for: both lead to the same place."""
    if isinstance(ip, IPv6Address) and any(ip in network for network in _V4_INSIDE) and int(ip) > 1:
        return IPv4Address(int(ip) & 0xFFFFFFFF)  # `::` and `::1` lie in ::/96 too, and stand for themselves
    return ip


def socket_factory(policy: Policy) -> SocketFactoryType:
    """The last line: aiohttp asks it for every socket, and it sees the address that socket will connect to."""

    def make(info: AddrInfoType) -> socket.socket:
        family, kind, protocol, _, sockaddr = info
        if what := refusal(sockaddr[0], policy):
            raise Blocked(f"the address is {what}", sockaddr[0])
        return socket.socket(family, kind, protocol)

    return make


def system_lookup(host: str) -> Sequence[AddrInfoType]:
    return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)


Share = tuple[str, ...]
"""Whose delivery it is, the widest first: the project that others were created from, then the project itself."""
SHARE: ContextVar[Share] = ContextVar("share", default=())
"""Set for each attempt; aiohttp passes nothing but the name to its resolver."""


class Resolver(AbstractResolver):
    """Look up names with getaddrinfo within a time limit, and judge the answers. aiohttp caches what this returns.

    A look-up that hangs keeps its thread for as long as the C library likes, often 30 s. So every look-up has a daemon
    thread of its own, and holds one slot of each share it counts towards until that thread ends. Names that never
    answer fill the slots of their own project and leave the others theirs; a quarter of all slots is kept for names
    that have answered before.
    """

    THREADS = 256
    SHARES = (16, 4)
    """Slots of each level of a `Share`."""
    PROBE = "wabery-resolver-check.invalid"
    """RFC 6761, 6.4: a working resolver says at once that a name under .invalid does not exist."""
    PROBE_TTL = timedelta(seconds=5)
    SILENCE_TTL = timedelta(seconds=10)
    """For how long a name that did not answer in time fails without another look-up."""
    REMEMBERED = 10_000

    def __init__(self, policy: Policy, limit: timedelta, lookup: Lookup = system_lookup) -> None:
        self._policy = policy
        self._limit = limit.total_seconds()
        self._lookup = lookup
        self._under_way: dict[str, asyncio.Future[Sequence[AddrInfoType]]] = {}
        taken = partial(ResolverDown, f"all {self.THREADS} look-up threads are taken")
        self._all = _Slots(self.THREADS, taken)
        self._unproven = _Slots(self.THREADS - self.THREADS // 4, taken)
        self._shares: WeakValueDictionary[Share, _Slots] = WeakValueDictionary()
        self._proven: OrderedDict[str, None] = OrderedDict()
        self._silent: OrderedDict[str, float] = OrderedDict()
        self._works_until = 0.0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Raises Blocked, Unresolved, ResolverDown."""
        infos = await self._answer(host)
        for info in infos:
            address = info[4][0]
            if what := refusal(address, self._policy):
                raise Blocked(f"{host} resolves to an address that is {what}", address)
        return [
            ResolveResult(hostname=host, host=info[4][0], port=port, family=info[0], proto=info[2], flags=0)
            for info in infos
        ]

    async def close(self) -> None:
        """Look-ups under way end in their own time; nobody waits for them."""

    async def _answer(self, host: str) -> Sequence[AddrInfoType]:
        silence = f"{host} got no DNS answer within {self._limit:g} s"
        if self._silent.get(host, 0.0) > time.monotonic():
            raise Unresolved(f"{silence} a moment ago")
        try:
            answer = await self._ask(host, self._slots(host))
        except (Unresolved, ResolverDown):
            raise
        except TimeoutError:
            await self._blame()
            self._remember(self._silent, host, time.monotonic() + self.SILENCE_TTL.total_seconds())
            raise Unresolved(silence) from None
        except socket.gaierror as failure:
            if failure.errno == socket.EAI_AGAIN:
                await self._blame()
            raise Unresolved(f"{host} does not resolve: {failure.strerror}") from failure
        except OSError as failure:  # EAI_SYSTEM, for instance out of file descriptors
            raise ResolverDown(f"a look-up failed on this machine: {failure}") from failure
        self._silent.pop(host, None)
        self._remember(self._proven, host, None)
        return answer

    def _remember(self, names: OrderedDict[str, T], host: str, value: T) -> None:
        names[host] = value
        names.move_to_end(host)
        if len(names) > self.REMEMBERED:
            names.popitem(last=False)

    def _slots(self, host: str) -> "list[_Slots]":
        """What a look-up of this name for the present share has to take, in the order of taking."""
        slots = [] if host in self._proven else [self._unproven]
        share = SHARE.get()
        for level, most in zip(range(1, len(share) + 1), self.SHARES, strict=False):
            its = self._shares.get(share[:level])
            if its is None:
                busy = partial(Unresolved, f"{most} other names of the same project do not answer")
                its = self._shares[share[:level]] = _Slots(most, busy)
            slots.append(its)
        return [*reversed(slots), self._all]

    async def _ask(self, host: str, slots: "list[_Slots]") -> Sequence[AddrInfoType]:
        """Joins the look-up of this name that is under way, or starts one; when time is up it goes on without us."""
        taken: list[_Slots] = []
        held_up: _Slots | None = None
        try:
            async with asyncio.timeout(self._limit):
                for held_up in slots:
                    if host in self._under_way:
                        break
                    await held_up.acquire()
                    taken.append(held_up)
                held_up = None
                question = self._under_way.get(host)
                if question is None:
                    question = self._start(host, taken)
                    taken = []
                _release(taken)
                taken = []
                return await asyncio.shield(question)
        except TimeoutError:
            if held_up is not None:
                raise held_up.refusal() from None
            raise
        finally:
            _release(taken)

    def _start(self, host: str, slots: "list[_Slots]") -> "asyncio.Future[Sequence[AddrInfoType]]":
        loop = asyncio.get_running_loop()
        question = self._under_way[host] = loop.create_future()

        def answered(found: Sequence[AddrInfoType] | Exception) -> None:
            del self._under_way[host]
            _release(slots)
            if isinstance(found, Exception):
                question.set_exception(found)
                question.exception()  # all who waited may have gone; asyncio warns of an exception that is never read
            else:
                question.set_result(found)

        def look_up() -> None:
            found: Sequence[AddrInfoType] | Exception
            try:
                found = self._lookup(host)
            except Exception as failure:  # noqa: BLE001  # raised to those who wait
                found = failure
            with suppress(RuntimeError):  # the loop has been closed meanwhile
                loop.call_soon_threadsafe(answered, found)

        try:
            threading.Thread(target=look_up, name=f"dns {host}", daemon=True).start()
        except RuntimeError as failure:
            del self._under_way[host]
            _release(slots)
            raise ResolverDown(f"no thread for a look-up: {failure}") from failure
        return question

    async def _blame(self) -> None:
        """EAI_AGAIN and silence mean "their DNS is broken" or "ours is": asks for a name that is not theirs.

        Raises ResolverDown if that is not answered either.
        """
        if time.monotonic() < self._works_until:
            return
        try:
            await self._ask(self.PROBE, [])
        except OSError as failure:
            if getattr(failure, "errno", None) != socket.EAI_NONAME:
                raise ResolverDown("the resolver of this machine answers no name") from None
        # A resolver that makes up answers does answer.
        self._works_until = time.monotonic() + self.PROBE_TTL.total_seconds()


class _Slots(asyncio.Semaphore):
    def __init__(self, most: int, refusal: Callable[[], OSError]) -> None:
        super().__init__(most)
        self.refusal = refusal
        """Makes what is raised when no slot has become free in time."""


def _release(slots: "list[_Slots]") -> None:
    for one in slots:
        one.release()
