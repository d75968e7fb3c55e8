"""Who is calling: addresses, and the one behind trusted proxies."""

import ipaddress
import re
from collections.abc import Sequence
from functools import lru_cache

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_IPV4_WITH_PORT = re.compile(r"([0-9.]+):[0-9]{1,5}")
_BRACKETED = re.compile(r"\[([^\]]*)\](?::[0-9]{1,5})?")


def client_address(peer: str, forwarded: str, trusted: Sequence[Network]) -> str:
    """The caller's address: the peer, or the last entry of `X-Forwarded-For` that no trusted proxy vouches for.

    `forwarded` holds all header lines, joined by commas. An entry may have a port, brackets and quotes. One that is not an
    address (`unknown`, `_hidden`, anything else) ends the search: the trusted proxy that wrote it then counts as the caller.
    """
    if not trusted:
        return peer
    known = peer
    for hop in (peer, *reversed([entry for entry in forwarded.split(",") if entry.strip()])):
        try:
            address = plain_address(_without_port(hop))
        except ValueError:
            return known
        known = str(address)
        if not any(address in network for network in trusted):
            return known
    return known


def is_trusted(peer: str, trusted: Sequence[Network]) -> bool:
    """Whether a peer may vouch for another address."""
    try:
        address = plain_address(peer)
    except ValueError:
        return False
    return any(address in network for network in trusted)


def plain_address(text: str) -> Address:
    """An address as such; an IPv4 one that came over an IPv6 socket is an IPv4 one. Raises ValueError."""
    address = ipaddress.ip_address(text)
    return (address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None) or address


@lru_cache(4096)
def network_of(text: str) -> str:
    """One IPv4 address, or the /64 that one IPv6 household has, in one spelling."""
    try:
        address = plain_address(text)
    except ValueError:
        return text
    return str(address) if address.version == 4 else f"{int(address) >> 64:x}::/64"


def site_of(text: str) -> str:
    """One IPv4 address, or the /48 that one IPv6 site has, in one spelling."""
    try:
        address = plain_address(text)
    except ValueError:
        return text
    return str(address) if address.version == 4 else f"{int(address) >> 80:x}::/48"


def _without_port(entry: str) -> str:
    entry = entry.strip().strip('"').strip()
    if found := _BRACKETED.fullmatch(entry) or _IPV4_WITH_PORT.fullmatch(entry):
        return found[1]
    return entry
