"""The steps between our fork and PostgreSQL's exec. The launcher executes this file; no module imports it.

    python -I -S child.py PARENT SIGNAL USER PROGRAM [ARGUMENT...]

PARENT is the pid that must still be our parent, SIGNAL what we get when it dies, USER one of `same`, `namespace` (root
outside, uid 1000 inside) or `uid:gid`. The pid stays the same through exec, so PostgreSQL is PARENT's direct child.

Why not `preexec_fn`, which would save the 25 ms of a second interpreter: its Python would run in a copy of a process that
may have threads (a server revives its database while it runs), where any lock may be held for ever.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_CLONE_NEWUSER = 0x10000000


def main(parent: str, death_signal: str, user: str, *command: str) -> None:
    _default_signals()
    if user == "namespace":
        _enter_namespace()
    elif user != "same":
        uid, gid = map(int, user.split(":"))
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if sys.platform == "linux":
        # Here and not earlier, because the kernel forgets the signal when the uid changes; and a parent that died
        # before this line will not die again, hence the look at its pid.
        _call("prctl", _PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
    if os.getppid() != int(parent):
        sys.exit("error: the process that started this one is gone")
    try:
        os.execv(command[0], command)  # noqa: S606 -- no shell wanted
    except OSError as error:
        sys.exit(f"error: uid {os.geteuid()} cannot run {command[0]}: {error.strerror}")


def _default_signals() -> None:
    """A background job inherits an ignored SIGINT, the signal that stops PostgreSQL and that our death sends."""
    for number in signal.valid_signals():
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _enter_namespace() -> None:
    """PostgreSQL refuses uid 0. Inside it is uid 1000; on the disk its files stay root's, so nothing needs chown."""
    uid, gid = os.geteuid(), os.getegid()
    _call("unshare", _CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"1000 {uid} 1"), ("gid_map", f"1000 {gid} 1")):
        Path("/proc/self", name).write_text(text, "ascii")


def _call(name: str, *arguments: int) -> None:
    if ctypes.CDLL(None, use_errno=True)[name](*arguments) != 0:
        sys.exit(f"error: {name}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main(*sys.argv[1:])
