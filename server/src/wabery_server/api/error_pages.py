"""/errors/{code}: what `doc_url` of an error body points to. A self-hosted server explains its own errors.

`docs/reference/errors` has the same pages.
"""

import inspect
from collections.abc import Iterator

from wabery_server import errors
from wabery_server.api.call import Answer, Call


async def show(call: Call) -> Answer:
    """One error code in plain words: what happened, what to do, and which calls answer it."""
    code = call.params["code"]
    if code not in codes():
        raise errors.NotFound("There is no such error code.", param="code")
    return Answer(page(code).encode(), 200, ((b"content-type", b"text/markdown; charset=utf-8"),))


def codes() -> list[str]:
    """Every code once, in the catalogue's order; one may come with two statuses."""
    return list(dict.fromkeys(refusal.code for refusal in errors.catalogue()))


def page(code: str) -> str:
    """The page about a code, in Markdown."""
    return "\n\n".join([f"# `{code}`", *_paragraphs(code)]) + "\n"


def _paragraphs(code: str) -> Iterator[str]:
    # The contract describes `show`, so it cannot be read before this module is.
    from wabery_server.api.document import who_answers

    for refusal in errors.catalogue():
        if refusal.code == code:
            yield f"**{refusal.status}** · {' '.join((inspect.getdoc(refusal) or '').split())}"
            yield f"> {refusal.message}"
            if refusal.hint is not None:
                yield f"What to do: {refusal.hint}"
            yield f"From {who_answers(refusal)}."
