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
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Literal

from aiohttp import AddrInfoType, SocketFactoryType
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from wabery_server.settings import Settings

Network = IPv4Network | IPv6Network
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
    """Our own resolver answers nobody, or has no thread free: not the endpoint's fault."""


def check_url(url: str, policy: Policy) -> None:
    """Refuses what can be refused without a look-up, for the moment a URL is set. Raises UnsafeUrl."""
    parse_url(url, policy)


def parse_url(url: str, policy: Policy) -> URL:
    """The URL as it will be requested, host in IDNA form. Raises UnsafeUrl."""
    if len(url) > LONGEST_URL:
        raise UnsafeUrl("length", f"The URL is longer than {LONGEST_URL} characters.")
    if _UNPRINTABLE.search(url):
        # The parser would drop some of these without a word and so request another URL than the one shown.
        raise UnsafeUrl("malformed", "The URL contains white space or control characters.")
    try:
        parsed = URL(url)
        host, port = parsed.raw_host, parsed.port
    except ValueError as failure:
        raise UnsafeUrl("malformed", f"The URL cannot be read: {failure}.") from failure
    if parsed.scheme not in ("https", "http") or (parsed.scheme == "http" and not policy.allow_http):
        raise UnsafeUrl(
            "scheme", f"The URL must start with https://{' or http://' if policy.allow_http else ''}."
        )
    if parsed.user is not None or parsed.password is not None:
        raise UnsafeUrl("userinfo", "The URL must not contain a user name or password.")
    if port not in (80, 443) and policy.allow_ports is not None and port not in policy.allow_ports:
        raise UnsafeUrl("port", f"Port {port} is not allowed; webhooks are sent to ports 80 and 443.")
    _check_host(host or "", policy)
    return parsed


_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f-\xa0\u2028\u2029]")
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


class Resolver(AbstractResolver):
    """getaddrinfo within a time limit, its answers judged. aiohttp caches what it returns, not what it raises.

    A look-up that hangs keeps its thread for as long as the C library likes. So there are threads of our own, and a
    name has at most one of them: a customer whose DNS never answers cannot take the threads of the others.
    """

    THREADS = 64
    PROBE = "wabery-resolver-check.invalid"
    """RFC 6761, 6.4: a working resolver says at once that a name under .invalid does not exist."""

    def __init__(self, policy: Policy, limit: timedelta, lookup: Lookup = system_lookup) -> None:
        self._policy = policy
        self._limit = limit.total_seconds()
        self._lookup = lookup
        self._threads = ThreadPoolExecutor(self.THREADS, thread_name_prefix="dns")
        self._under_way: dict[str, _Question] = {}

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
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _answer(self, host: str) -> Sequence[AddrInfoType]:
        try:
            return await self._ask(host)
        except ResolverDown:
            raise
        except TimeoutError:
            await self._blame()
            raise Unresolved(f"{host} got no DNS answer within {self._limit:g} s") from None
        except socket.gaierror as failure:
            if failure.errno == socket.EAI_AGAIN:
                await self._blame()
            raise Unresolved(f"{host} does not resolve: {failure.strerror}") from failure
        except OSError as failure:  # EAI_SYSTEM, for instance out of file descriptors
            raise ResolverDown(f"a look-up failed on this machine: {failure}") from failure

    async def _ask(self, host: str) -> Sequence[AddrInfoType]:
        """Joins the look-up of this name that is under way, or starts one; when time is up it goes on without us."""
        question = self._under_way.get(host)
        if question is None:
            question = self._under_way[host] = _Question(self._threads.submit(self._lookup, host))
            question.answer.add_done_callback(lambda answer: self._answered(host, answer))
        try:
            async with asyncio.timeout(self._limit):
                return await asyncio.shield(question.answer)
        except TimeoutError:
            if question.waits_for_a_thread:
                raise ResolverDown(f"all {self.THREADS} look-up threads are taken") from None
            raise

    def _answered(self, host: str, answer: asyncio.Future[Sequence[AddrInfoType]]) -> None:
        del self._under_way[host]
        if not answer.cancelled():
            answer.exception()  # all who waited may have gone, and asyncio complains of one that nobody looked at

    async def _blame(self) -> None:
        """EAI_AGAIN and silence mean "their DNS is broken" or "ours is": asks for a name that is not theirs.

        Raises ResolverDown if that is not answered either.
        """
        try:
            await self._ask(self.PROBE)
        except TimeoutError:
            pass
        except OSError as failure:
            if failure.errno == socket.EAI_NONAME:
                return
        else:
            return  # a resolver that makes up answers does answer
        raise ResolverDown("the resolver of this machine answers no name")


class _Question:
    def __init__(self, asked: Future[Sequence[AddrInfoType]]) -> None:
        self._asked = asked
        self.answer = asyncio.wrap_future(asked)

    @property
    def waits_for_a_thread(self) -> bool:
        return not (self._asked.running() or self._asked.done())
