"""/errors/{code}: what `doc_url` of an error body points to. A self-hosted server explains its own errors."""

import inspect

from wabery_server import errors
from wabery_server.api.call import Answer, Call


async def show(call: Call) -> Answer:
    """One error code in plain words: what happened, and what to do."""
    code = call.params["code"]
    found = [refusal for refusal in errors.catalogue() if refusal.code == code]
    if not found:
        raise errors.NotFound("There is no such error code.", param="code")
    return Answer(_page(found).encode(), 200, ((b"content-type", b"text/markdown; charset=utf-8"),))


def _page(refusals: list[type[errors.WaberyError]]) -> str:
    lines = [f"# {refusals[0].code}", ""]
    for refusal in refusals:
        lines += [f"HTTP {refusal.status}. {inspect.getdoc(refusal)}", ""]
        if refusal.hint:
            lines += [f"What to do: {refusal.hint}", ""]
    return "\n".join(lines)
