"""Exit codes, and the errors that choose them."""

from __future__ import annotations

from enum import IntEnum
from typing import Self

from wabery import errors


class Exit(IntEnum):
    """What a command's exit code says."""

    about: str

    def __new__(cls, code: int, about: str) -> Self:
        member = int.__new__(cls, code)
        member._value_ = code
        member.about = about
        return member

    OK = 0, "it worked; with --wait, the person has joined"
    UNEXPECTED = 1, "something unexpected, or a check that found something wrong"
    USAGE = 2, "the command line, or a value in it, is wrong"
    FORBIDDEN = 3, "not authenticated, or not allowed"
    NOT_FOUND = 4, "there is no such object"
    CONFLICT = 5, "the object's state is against it"
    RATE_LIMITED = 6, "too many requests"
    SERVER = 7, "the server failed, could not be reached, or does not have this call"
    EXPIRED = 10, "the registration intent has expired"
    REFUSED = 11, "the registration intent was cancelled or refused"
    TIMED_OUT = 12, "the time for waiting ran out; the registration intent goes on"
    INTERRUPTED = 130, "Ctrl-C"


class CommandError(Exception):
    """A command cannot go on: one sentence, what to do about it, and the exit code."""

    def __init__(self, message: str, hint: str | None = None, code: Exit = Exit.USAGE) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code


def code_of(error: errors.WaberyError) -> Exit:
    """The exit code for an error of the SDK."""
    match error:
        case errors.AuthenticationError() | errors.PermissionDeniedError():
            return Exit.FORBIDDEN
        case errors.NotFoundError():
            return Exit.NOT_FOUND
        case errors.ConflictError():
            return Exit.CONFLICT
        case errors.RateLimitError():
            return Exit.RATE_LIMITED
        case errors.ServerError() | errors.EndpointNotAvailableError():
            return Exit.SERVER
        case errors.APIError(status=status) if status < 400:
            return Exit.SERVER  # a redirect, which is not followed
        case errors.APIConnectionError() | errors.UnexpectedResponseError():
            return Exit.SERVER
        case errors.APIError() | errors.UsageError():
            return Exit.USAGE
        case errors.WaitTimeoutError():
            return Exit.TIMED_OUT
    return Exit.UNEXPECTED
