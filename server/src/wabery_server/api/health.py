"""/livez and /readyz, for a load balancer or a process manager. Neither waits for the database."""

from wabery_server import errors
from wabery_server.api.call import Answer, Call


async def live(call: Call) -> Answer:
    """The process runs its event loop."""
    return call.answer({"status": "ok"})


async def ready(call: Call) -> Answer:
    """The database answers and takes writes, and the process is not shutting down."""
    if call.service.draining:
        raise errors.Unavailable("The server is shutting down.", retry_after=5)
    if (problem := await call.service.readiness.ask()) is not None:
        raise errors.Unavailable(problem, retry_after=1)
    return call.answer({"status": "ok"})
