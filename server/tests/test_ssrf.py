"""Webhooks go to public addresses only: every listed range, every spelling, every way of changing one's mind."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Protocol

import aiohttp
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yarl import URL

from wabery_server import webhooks
from wabery_server.webhooks import LOOPBACK, Outcome, Policy, Poster, UnsafeUrl, check_url, guard

LIVE = Policy()
TEST = Policy(allow_http=True)
ANY_PORT = Policy(allow_http=True, allow_ports=None)
ONLY_ONE = Policy(allow_http=True, allow_ports=None, allow_networks=(ip_network("127.0.0.1/32"),))
"""127.0.0.1 stands for a public address, 127.0.0.2 for a private one: both can be listened on."""

DENIED_V4 = [
    IPv4Network(text)
    for text in [
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "168.63.129.16/32",
    ]
]
DENIED_V6 = [
    IPv6Network(text)
    for text in [
        "::/128",
        "::1/128",
        "64:ff9b:1::/48",
        "100::/64",
        "5f00::/16",
        "fc00::/7",
        "fe80::/10",
        "fec0::/10",
        "ff00::/8",
        "2001:db8::/32",
        "3fff::/20",
        "2002::/16",
        "2001::/32",
    ]
]
PITFALLS = [
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "2002:a9fe:a9fe::",
    "::169.254.169.254",
    "192.0.0.8",
    "192.88.99.1",
    "224.0.0.1",
    "ff02::1",
    "fec0::1",
    "3fff::1",
    "5f00::1",
    "168.63.129.16",
    "100.64.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:0:10.0.0.1",
    "fd00:ec2::254",
    "255.255.255.255",
    "0.0.0.0",
    "::",
    "::1",
    "fe80::1%eth0",
    "::ffff:127.0.0.1%1",
    "2002:7f00:1::",
]
"""What `ipaddress` calls global, neither, or cannot compare; clouds' metadata; the edges."""
PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "93.184.215.14",
    "198.20.0.0",
    "223.255.255.255",
    "2606:4700:4700::1111",
    "2a00:1450:4001:80b::200e",
    "::ffff:8.8.8.8",
    "::8.8.8.8",
    "64:ff9b::808:808",
]


def addresses(network: IPv4Network | IPv6Network) -> list[str]:
    """The first, the last and a middle address."""
    return [str(network[0]), str(network[-1]), str(network[network.num_addresses // 2])]


NETWORKS: list[IPv4Network | IPv6Network] = [*DENIED_V4, *DENIED_V6]


# The table


@pytest.mark.parametrize("address", [address for network in NETWORKS for address in addresses(network)])
def test_an_address_of_a_denied_range_is_refused(address: str) -> None:
    assert guard.refusal(address, TEST) is not None


@pytest.mark.parametrize("address", PITFALLS)
def test_an_address_that_tables_elsewhere_let_pass_is_refused(address: str) -> None:
    assert guard.refusal(address, TEST) is not None


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_allowed(address: str) -> None:
    assert guard.refusal(address, LIVE) is None


@pytest.mark.parametrize("network", DENIED_V4, ids=str)
def test_a_denied_range_ends_where_it_ends(network: IPv4Network) -> None:
    neighbours = [IPv4Address(n) for n in (int(network[0]) - 1, int(network[-1]) + 1) if 0 < n < 2**32]

    for neighbour in neighbours:
        in_another = any(neighbour in other for other in DENIED_V4)
        assert (guard.refusal(str(neighbour), TEST) is not None) == in_another


@given(st.ip_addresses(v=4))
def test_what_the_standard_library_calls_private_is_refused_too(address: IPv4Address) -> None:
    assert address.is_global or guard.refusal(str(address), TEST) is not None


@given(st.ip_addresses(v=6))
def test_nothing_outside_2000_3_is_allowed_but_what_stands_for_a_public_ipv4_address(
    address: IPv6Address,
) -> None:
    wraps = any(address in ip_network(n) for n in ("::ffff:0:0/96", "::/96", "64:ff9b::/96"))

    allowed = guard.refusal(str(address), TEST) is None

    assert not allowed or wraps or address in ip_network("2000::/3")


@given(st.one_of(st.ip_addresses(v=4), *[st.ip_addresses(network=network) for network in DENIED_V4]))
@example(IPv4Address("169.254.169.254"))
def test_an_ipv4_address_is_judged_alike_in_every_ipv6_coat(address: IPv4Address) -> None:
    coats = [f"::ffff:{address}", f"64:ff9b::{address}", f"::{address}"]

    verdicts = {guard.refusal(coat, TEST) is None for coat in coats}

    assert verdicts == {guard.refusal(str(address), TEST) is None}


def test_an_allowed_network_opens_itself_and_nothing_else() -> None:
    policy = Policy(allow_networks=(ip_network("10.1.0.0/16"), ip_network("fd12::/16")))

    assert guard.refusal("10.1.2.3", policy) is None
    assert guard.refusal("::ffff:10.1.2.3", policy) is None
    assert guard.refusal("fd12::1", policy) is None
    assert guard.refusal("10.2.0.1", policy) is not None
    assert guard.refusal("fd13::1", policy) is not None
    assert guard.refusal("169.254.169.254", policy) is not None


def test_development_allows_loopback_of_both_families() -> None:
    policy = Policy(allow_networks=LOOPBACK)

    assert guard.refusal("127.0.0.1", policy) is None
    assert guard.refusal("127.255.255.255", policy) is None
    assert guard.refusal("::1", policy) is None
    assert guard.refusal("10.0.0.1", policy) is not None
    assert guard.refusal("::", policy) is not None


# The URL


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.acme.test/wabery",
        "https://hooks.acme.test:443/",
        "https://hooks.acme.test:80/",
        "HTTPS://HOOKS.ACME.TEST",
        "https://hooks.acme.test./",
        "https://bücher.example/w%C3%A4hle?q=%C3%BC#x",
        "https://hooks.acme.test:/",
        "https://hooks.acme.test?x",
        "https://hooks.acme.test/a%2Fb//c/../d;e?sig=x%2Fy%2Bz%3D&sig=&?",
        "https://hooks.acme.test/{}|\\^\"<>`'%zz",
        "https://my_service.acme.test/",
        "https://1e100.example/",
        "https://1.1.1.1/",
        "https://[2606:4700:4700::1111]/",
        "https://" + "a" * 63 + ".test/",
    ],
)
def test_a_public_https_url_is_taken(url: str) -> None:
    check_url(url, LIVE)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://hooks.acme.test/", "scheme"),
        ("ftp://hooks.acme.test/", "scheme"),
        ("file:///etc/passwd", "scheme"),
        ("gopher://hooks.acme.test/", "scheme"),
        ("//hooks.acme.test/", "scheme"),
        ("hooks.acme.test/", "scheme"),
        ("", "scheme"),
        ("https://ana@hooks.acme.test/", "userinfo"),
        ("https://ana:pw@hooks.acme.test/", "userinfo"),
        ("https://:pw@hooks.acme.test/", "userinfo"),
        ("https://1.1.1.1@127.0.0.1/", "userinfo"),
        ("https://hooks.acme.test:8443/", "port"),
        ("https://hooks.acme.test:22/", "port"),
        ("https://hooks.acme.test:0/", "port"),
        ("https://hooks.acme.test:00/", "port"),
        ("https://hooks.acme.test:65536/", "malformed"),
        ("https://hooks.acme.test:-1/", "malformed"),
        ("https://hooks.acme.test:+443/", "malformed"),
        ("https://hooks.acme.test:4_43/", "malformed"),
        ("https://hooks.acme.test:٤٤٣/", "malformed"),
        ("https://hooks.acme.test:443:443/", "malformed"),
        ("https://[2606:4700:4700::1111]:٤٤٣/", "malformed"),
        ("https://[2606:4700:4700::1111]:0/", "port"),
        ("https://[2606:4700:4700::1111]x/", "malformed"),
        ("https://hooks.acme.test/é", "malformed"),
        ("https://hooks.acme.test/?q=é", "malformed"),
        ("https://hooks.acme.test/\x7f", "malformed"),
        ("https://hooks.acme.test/\u200b", "malformed"),
        ("https://hooks.acme.test/\ud800", "malformed"),
        ("https://@hooks.acme.test/", "userinfo"),
        ("https://:@hooks.acme.test/", "userinfo"),
        ("https:hooks.acme.test/", "scheme"),
        ("https:/hooks.acme.test/", "scheme"),
        ("https://?x", "host"),
        ("https://#x", "host"),
        ("https://:443/", "malformed"),
        ("https://./", "host"),
        ("https://hooks.acme.test../", "host"),
        ("https://[1.1.1.1]/", "malformed"),
        ("https://hooks.acme.test:99999/", "malformed"),
        ("https://hooks.acme.test:https/", "malformed"),
        ("https://hooks.acme.test\\@127.0.0.1/", "malformed"),
        ("https://[::1", "malformed"),
        ("https://hooks.acme.test/a b", "malformed"),
        ("https://hooks.acme.test/\r\nx: y", "malformed"),
        ("https://hooks.\tacme.test/", "malformed"),
        ("https://hooks.acme.test/\x00", "malformed"),
        (" https://hooks.acme.test/", "malformed"),
        ("https://hooks\u200b.acme.test/", "malformed"),
        ("https://", "host"),
        ("https:///path", "host"),
        ("https://a..test/", "host"),
        ("https://.test/", "host"),
        ("https://-a.test/", "host"),
        ("https://a%00b.test/", "host"),
        ("https://a%2e.test/", "host"),
        ("https://" + "a" * 64 + ".test/", "host"),
        ("https://" + "a." * 130 + "test/", "host"),
        ("https://127.1/", "host"),
        ("https://2130706433/", "host"),
        ("https://0x7f000001/", "host"),
        ("https://0x7f.1/", "host"),
        ("https://0177.0.0.1/", "host"),
        ("https://010.0.0.1/", "host"),
        ("https://127.0.0.1./", "host"),
        ("https://1.1.1.1.1/", "host"),
        ("https://[fe80::1%25eth0]/", "host"),
        ("https://127.0.0.1/", "address"),
        ("https://169.254.169.254/latest/meta-data/", "address"),
        ("https://168.63.129.16/", "address"),
        ("https://[::1]/", "address"),
        ("https://[::ffff:127.0.0.1]/", "address"),
        ("https://[::ffff:7f00:1]/", "address"),
        ("https://[64:ff9b::a9fe:a9fe]/", "address"),
        ("https://[fd00:ec2::254]/", "address"),
        ("https://①②⑦.⓪.⓪.①/", "address"),
        ("https://127。0。0。1/", "address"),
        ("https://hooks.acme.test/" + "a" * 2048, "length"),
    ],
)
def test_an_unsafe_url_is_refused_with_its_reason(url: str, reason: str) -> None:
    with pytest.raises(UnsafeUrl) as refused:
        check_url(url, LIVE)

    assert refused.value.reason == reason
    assert refused.value.message.endswith(".")


def test_port_0_is_refused_even_where_any_port_is_allowed() -> None:
    with pytest.raises(UnsafeUrl, match="Port 0"):
        check_url("http://hooks.acme.test:0/", ANY_PORT)


def test_test_mode_takes_http_and_no_other_port() -> None:
    check_url("http://hooks.acme.test/", TEST)

    with pytest.raises(UnsafeUrl, match="Port 8080"):
        check_url("http://hooks.acme.test:8080/", TEST)


def test_an_operator_can_allow_ports() -> None:
    check_url("https://hooks.acme.test:8443/", Policy(allow_ports=frozenset({8443})))
    check_url("https://hooks.acme.test:443/", Policy(allow_ports=frozenset({8443})))
    check_url("https://hooks.acme.test:1234/", Policy(allow_ports=None))


_SPICE = st.text(alphabet="aé。①0127.:/@[]%\\?#-_x \t\r\n\x00\u200b\u00ad\ud800", max_size=30)


@given(st.one_of(st.text(), _SPICE.map("https://".__add__), _SPICE.map("http://".__add__)))
def test_any_text_is_either_taken_or_refused(text: str) -> None:
    try:
        url = guard.parse_url(text, TEST)
    except UnsafeUrl:
        return

    assert url.scheme in ("http", "https")
    assert url.raw_host is not None
    assert url.raw_host.isascii()


# Names


def answer(*found: str) -> guard.Lookup:
    """A DNS that gives these addresses for every name."""
    return lambda _: [
        (
            socket.AF_INET6 if ":" in address else socket.AF_INET,
            socket.SOCK_STREAM,
            socket.IPPROTO_TCP,
            "",
            (address, 0, 0, 0) if ":" in address else (address, 0),
        )
        for address in found
    ]


@asynccontextmanager
async def resolver(policy: Policy, lookup: guard.Lookup) -> AsyncIterator[guard.Resolver]:
    made = guard.Resolver(policy, timedelta(seconds=3), lookup)
    yield made
    await made.close()


@pytest.mark.parametrize(
    "spelling",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0x7f000001",
        "0177.0.0.1",
        "017700000001",
        "127.0.1",
        "localhost",
    ],
)
async def test_what_getaddrinfo_makes_of_a_spelling_is_judged(spelling: str) -> None:
    async with resolver(TEST, guard.system_lookup) as names:
        with pytest.raises(guard.Blocked) as blocked:
            await names.resolve(spelling, 80)

    assert ip_address(blocked.value.address).is_loopback


async def test_an_octal_spelling_is_judged_by_the_address_it_means() -> None:
    async with resolver(TEST, guard.system_lookup) as names:
        with pytest.raises(guard.Blocked):
            await names.resolve("012.0.0.1", 80)  # 10.0.0.1
        public = await names.resolve("010.010.010.010", 80)

    assert [found["host"] for found in public] == ["8.8.8.8"]


@pytest.mark.parametrize(
    "found",
    [
        ["1.1.1.1", "10.0.0.1"],
        ["10.0.0.1", "1.1.1.1"],
        ["2606:4700:4700::1111", "1.1.1.1", "::ffff:169.254.169.254"],
        ["1.1.1.1", "fe80::1%eth0"],
    ],
)
async def test_one_bad_address_refuses_the_whole_answer(found: list[str]) -> None:
    async with resolver(LIVE, answer(*found)) as names:
        with pytest.raises(guard.Blocked):
            await names.resolve("hooks.acme.test", 443)


async def test_a_good_answer_comes_through_in_its_order() -> None:
    async with resolver(LIVE, answer("2606:4700:4700::1111", "1.1.1.1")) as names:
        found = await names.resolve("hooks.acme.test", 443)

    assert [(each["host"], each["port"]) for each in found] == [
        ("2606:4700:4700::1111", 443),
        ("1.1.1.1", 443),
    ]


# Real sockets


class Target:
    """Listens, counts who comes, and answers them all alike."""

    def __init__(self, reply: bytes) -> None:
        self._reply = reply
        self._handlers: list[asyncio.Task[None] | None] = []

    @property
    def visits(self) -> int:
        return len(self._handlers)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._handlers.append(asyncio.current_task())
        await reader.readuntil(b"\r\n\r\n")
        writer.write(self._reply)
        writer.close()
        await writer.wait_closed()

    async def close(self) -> None:
        await asyncio.gather(*filter(None, self._handlers))


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Listen(Protocol):
    async def __call__(self, address: str, port: int = 0, reply: bytes = OK) -> tuple[Target, int]: ...


@pytest.fixture
async def listen() -> AsyncIterator[Listen]:
    async with AsyncExitStack() as stack:

        async def start(address: str, port: int = 0, reply: bytes = OK) -> tuple[Target, int]:
            target = Target(reply)
            server = await asyncio.start_server(target.serve, address, port)
            stack.push_async_callback(target.close)
            stack.callback(server.close)
            return target, server.sockets[0].getsockname()[1]

        yield start


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "0.0.0.0",
        "localhost",
        "①②⑦.⓪.⓪.①",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "127.0.0.1.",
    ],
)
async def test_no_spelling_of_this_machine_is_reached(listen: Listen, host: str) -> None:
    target, port = await listen("127.0.0.1")
    async with Poster(ANY_PORT) as poster:
        result = await poster.post(f"http://{host}:{port}/", b"{}", {})

    assert result.outcome is Outcome.BLOCKED
    assert target.visits == 0


async def test_ipv6_loopback_is_not_reached(listen: Listen) -> None:
    try:
        target, port = await listen("::1")
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    async with Poster(ANY_PORT) as poster:
        result = await poster.post(f"http://[::1]:{port}/", b"{}", {})

    assert result.outcome is Outcome.BLOCKED
    assert target.visits == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "0x7f.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0"])
async def test_the_socket_itself_refuses_when_nothing_before_it_did(listen: Listen, host: str) -> None:
    target, port = await listen("127.0.0.1")
    connector = aiohttp.TCPConnector(socket_factory=guard.socket_factory(ANY_PORT))
    async with aiohttp.ClientSession(connector=connector) as session:
        with pytest.raises(aiohttp.ClientConnectorError) as refused:
            await session.post(f"http://{host}:{port}/")

    assert isinstance(refused.value.os_error, guard.Blocked)
    assert target.visits == 0


async def test_a_poster_refuses_at_the_socket_what_its_url_check_let_through(
    listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, port = await listen("127.0.0.1")
    monkeypatch.setattr(guard, "parse_url", lambda url, policy: URL(url))

    async with Poster(ANY_PORT) as poster:
        result = await poster.post(f"http://127.0.0.1:{port}/", b"{}", {})

    assert (result.outcome, result.address) == (Outcome.BLOCKED, "127.0.0.1")
    assert result.error == "the address is loopback"
    assert target.visits == 0


async def test_the_socket_refuses_a_redirect_target_even_if_somebody_followed_it(listen: Listen) -> None:
    inner, inner_port = await listen("127.0.0.2")
    location = f"http://127.0.0.2:{inner_port}/".encode()
    outer, port = await listen("127.0.0.1", reply=OK.replace(b"200 OK", b"307 See\r\nLocation: " + location))
    connector = aiohttp.TCPConnector(socket_factory=guard.socket_factory(ONLY_ONE))
    async with aiohttp.ClientSession(connector=connector) as session:
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.post(f"http://127.0.0.1:{port}/")

    assert (outer.visits, inner.visits) == (1, 0)


@pytest.mark.parametrize(
    "status", [b"301 Moved", b"302 Found", b"303 See", b"307 Temporary", b"308 Permanent"]
)
async def test_a_redirect_is_not_followed(listen: Listen, status: bytes) -> None:
    inner, inner_port = await listen("127.0.0.1")
    location = f"http://127.0.0.1:{inner_port}/".encode()
    outer, port = await listen(
        "127.0.0.1", reply=OK.replace(b"200 OK", status + b"\r\nLocation: " + location)
    )
    async with Poster(ONLY_ONE) as poster:
        result = await poster.post(f"http://127.0.0.1:{port}/", b"{}", {})

    assert result.outcome is Outcome.REDIRECT
    assert (outer.visits, inner.visits) == (1, 0)


@pytest.mark.parametrize("found", [["127.0.0.1", "127.0.0.2"], ["127.0.0.2", "127.0.0.1"]])
async def test_a_name_with_one_good_and_one_bad_address_reaches_neither(
    listen: Listen, found: list[str]
) -> None:
    good, port = await listen("127.0.0.1")
    bad, _ = await listen("127.0.0.2", port)
    async with Poster(ONLY_ONE, lookup=answer(*found)) as poster:
        result = await poster.post(f"http://hooks.acme.test:{port}/", b"{}", {})

    assert result.outcome is Outcome.BLOCKED
    assert result.address == "127.0.0.2"
    assert result.error == "hooks.acme.test resolves to an address that is loopback"
    assert (good.visits, bad.visits) == (0, 0)


async def test_a_name_that_changes_between_check_and_connect_connects_to_what_was_checked(
    listen: Listen,
) -> None:
    good, port = await listen("127.0.0.1")
    bad, _ = await listen("127.0.0.2", port)
    answers = iter([answer("127.0.0.1"), answer("127.0.0.2")])
    asked = []

    def rebinding(host: str) -> Sequence[aiohttp.AddrInfoType]:
        asked.append(host)
        return next(answers)(host)

    async with Poster(ONLY_ONE, lookup=rebinding) as poster:
        url = f"http://hooks.acme.test:{port}/"
        check_url(url, ONLY_ONE)
        first = await poster.post(url, b"{}", {})
        second = await poster.post(url, b"{}", {})

    assert [first.outcome, second.outcome] == [Outcome.DELIVERED, Outcome.DELIVERED]
    assert [first.address, second.address] == ["127.0.0.1", "127.0.0.1"]
    assert asked == ["hooks.acme.test"]
    assert (good.visits, bad.visits) == (2, 0)


async def test_a_name_that_later_turns_to_a_bad_address_is_blocked_then(listen: Listen) -> None:
    with (
        socket.socket() as closed
    ):  # bound and not listening: refuses connections, and nobody else gets the port
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        bad, _ = await listen("127.0.0.2", port)
        answers = iter([answer("127.0.0.1"), answer("127.0.0.2")])
        async with Poster(ONLY_ONE, lookup=lambda host: next(answers)(host)) as poster:
            first = await poster.post(f"http://hooks.acme.test:{port}/", b"{}", {})
            second = await poster.post(f"http://hooks.acme.test:{port}/", b"{}", {})

    assert [first.outcome, second.outcome] == [Outcome.CONNECT, Outcome.BLOCKED]
    assert bad.visits == 0


async def test_each_delivery_is_judged_by_the_policy_of_its_own_poster(listen: Listen) -> None:
    target, port = await listen("127.0.0.1")
    url = f"http://127.0.0.1:{port}/"
    async with (
        Poster(webhooks.Policy(allow_ports=None, allow_networks=LOOPBACK)) as live,
        Poster(ONLY_ONE) as test,
    ):
        by_test = await test.post(url, b"{}", {})
        by_live = await live.post(url, b"{}", {})

    assert (by_test.outcome, by_live.outcome) == (Outcome.DELIVERED, Outcome.BLOCKED)
    assert by_live.error == "The URL must start with https://."
    assert target.visits == 1
