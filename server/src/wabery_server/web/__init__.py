"""HTTP for every edge: a bounded server that speaks ASGI 3 to an application, and knows nothing of Wabery's business.

`server.py` accepts, counts, closes and drains connections · `connection.py` reads the requests of one · `exchange.py` a
request and its answer, as ASGI sees them · `body.py` how a body is framed, and the memory that bodies may take · `address.py` who is behind trusted proxies ·
`bounds.py` every limit, with its value.

A proxy in front is advice, not a requirement: each limit holds for a client that connects directly.
"""

from wabery_server.web.address import client_address, network_of, plain_address, site_of
from wabery_server.web.bounds import Bounds, connection_limit, raise_descriptor_limit
from wabery_server.web.server import BACKLOG, Refusal, Server

__all__ = [
    "BACKLOG",
    "Bounds",
    "Refusal",
    "Server",
    "client_address",
    "connection_limit",
    "network_of",
    "plain_address",
    "raise_descriptor_limit",
    "site_of",
]
