"""/livez and /readyz, for a load balancer or a process manager. Neither waits for the database."""

from wabery_server import errors
from wabery_server.api.call import Answer, Call

FORWARDED = "wabery-forwarded"


async def live(call: Call) -> Answer:
    """The process runs its event loop.

    For `doctor`, a header says when the request came through a proxy whose `X-Forwarded-For` does not count.
    """
    forwarded = call.headers.get(b"x-forwarded-for")
    if forwarded is not None and call.ip not in forwarded:
        call.out.append((FORWARDED.encode(), b"untrusted"))
    return call.answer({"status": "ok"})


async def ready(call: Call) -> Answer:
    """The database answers and takes writes, and the process is not shutting down."""
    if call.service.draining:
        raise errors.Unavailable("The server is shutting down.", retry_after=5)
    if (problem := await call.service.readiness.ask()) is not None:
        raise errors.Unavailable(problem, retry_after=1)
    return call.answer({"status": "ok"})
