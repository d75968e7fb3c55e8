"""What every test of the repository stands on, wherever it is: default signal handling."""

import signal

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """A shell starts background jobs with SIGINT and SIGQUIT ignored, and children inherit that: Ctrl-C tests would hang.

    Handlers, unlike ignored signals, are reset in a child at exec, so all subprocesses of the tests start with the default.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
