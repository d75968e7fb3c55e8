"""What the world around a process does to a command: streams that are closed or full, files that cannot be used, variables
that mean nothing. Each ends the command with one sentence and an exit code; none of it is a bug of ours.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import sys
from collections.abc import Callable
from typing import TextIO

from wabery.cli._exit import CommandError, Exit

_STDOUT = "stdout cannot be written"
_OF_A_NAME = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EEXIST,
        errno.EROFS,
        errno.ELOOP,
        errno.ENAMETOOLONG,
    }
)
"""What a path that somebody chose can be at fault for."""
_OF_A_STREAM = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF, errno.EINVAL, errno.ENXIO}
)


def guarded(command: Callable[[], int]) -> int:
    """Run a command on streams that can be used, and see that what it wrote has arrived. Returns its exit code."""
    _open_standard_streams()
    try:
        code = _code_of(command)
        sys.stdout.flush()
    except BrokenPipeError:
        code = Exit.OK  # whoever read us has seen enough (`… list | head`)
    except OSError as failure:
        stopped = explained(failure)
        if stopped is None:
            raise
        with contextlib.suppress(OSError):
            print(f"error: {stopped.message}", file=sys.stderr)
        code = stopped.code
    finally:
        # Python flushes both once more when it ends, and would complain about what has been said.
        for stream in (sys.stdout, sys.stderr):
            _discard_if_broken(stream)
    return code


def _code_of(command: Callable[[], int]) -> int:
    try:
        return command()
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
            return Exit.UNEXPECTED
        return ended.code or Exit.OK


def explained(failure: BaseException) -> CommandError | None:
    """A failure of the world as the error that ends a command; None for anything else."""
    if isinstance(failure, OSError) and failure.filename is not None:
        name = os.fsdecode(failure.filename) if isinstance(failure.filename, bytes) else str(failure.filename)
        code = Exit.USAGE if failure.errno in _OF_A_NAME else Exit.UNEXPECTED
        return CommandError(f"{name} cannot be used: {_why(failure)}.", code=code)
    if isinstance(failure, OSError) and failure.errno in _OF_A_STREAM:
        return CommandError(f"{_STDOUT}: {_why(failure)}.", code=Exit.UNEXPECTED)
    if isinstance(failure, OSError) and failure.errno is not None:
        return CommandError(f"The system refused: {_why(failure)}.", code=Exit.UNEXPECTED)
    if isinstance(failure, UnicodeEncodeError) and _is_surrogate(failure):
        return CommandError("An argument or a variable of the environment is not UTF-8 text.")
    if isinstance(failure, UnicodeDecodeError):
        return CommandError("What was to be read is not UTF-8 text.")
    if isinstance(failure, RuntimeError) and "home directory" in str(failure):
        return CommandError("There is no home directory.", "Set HOME.")
    return None


def _why(failure: OSError) -> str:
    return failure.strerror or type(failure).__name__


def _is_surrogate(failure: UnicodeEncodeError) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in failure.object[failure.start : failure.end])


def _open_standard_streams() -> None:
    """Fill in streams that were closed, and make the others able to carry any text.

    A closed stdout stays one that cannot be written: what was to be read from it is lost. Pipes and files get UTF-8,
    whatever the locale. What a terminal's encoding lacks is written as JSON escapes it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                opened = os.open(os.devnull, os.O_WRONLY if name == "stderr" else os.O_RDONLY)
                if opened != number:
                    os.dup2(opened, number)
                    os.close(opened)
                setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    codecs.register_error("json", _as_json)
    for stream in (sys.stdout, sys.stderr):
        if (reconfigure := getattr(stream, "reconfigure", None)) is not None:
            reconfigure(encoding=None if stream.isatty() else "utf-8", errors="json")


def _as_json(failure: UnicodeError) -> tuple[str, int]:
    if not isinstance(failure, UnicodeEncodeError):
        raise failure
    units = failure.object[failure.start : failure.end].encode("utf-16-be", "surrogatepass")
    pairs = (units[at : at + 2].hex() for at in range(0, len(units), 2))
    return "".join(f"\\u{pair}" for pair in pairs), failure.end


def _discard_if_broken(stream: TextIO) -> None:
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            stream.flush()
