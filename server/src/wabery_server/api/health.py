"""/livez and /readyz: for whoever supervises the process. Neither touches the lanes of the hot path."""

import asyncio

from wabery_server import errors
from wabery_server.api.call import Answer, Call

_READY_SECONDS = 2.0


async def live(call: Call) -> Answer:
    """The process runs its event loop."""
    return call.answer({"status": "ok"})


async def ready(call: Call) -> Answer:
    """The database answers, and the process is not shutting down."""
    if call.service.draining:
        raise errors.Unavailable("The server is shutting down.", retry_after=5)
    try:
        async with asyncio.timeout(_READY_SECONDS):
            await call.service.database.run(lambda tx: tx.rows("select 1"))
    except TimeoutError:
        raise errors.Unavailable("The database does not answer.", retry_after=5) from None
    return call.answer({"status": "ok"})
