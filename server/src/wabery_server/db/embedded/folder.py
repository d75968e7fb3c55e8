"""The data folder: trusted only when no other user can have prepared it, and never left through a symbolic link.

Another local user may create the folder before we do, with a `secret.key` of theirs and links to files of ours. So the
folder must be a real directory of ours with mode 0700, and every file in it is opened by name below the folder's own
descriptor, without following a link, and must be a regular file of ours.
"""

import contextlib
import os
import pwd
import stat
from pathlib import Path
from types import TracebackType
from typing import Self

_OTHERS = 0o077
_OTHERS_WRITE = 0o022
_FALLBACK_USERS = ("postgres", "nobody")


class UntrustedFolder(Exception):
    """Something in the data folder may be another user's work; the message is one line that says what to do."""


def fallback_users() -> list[pwd.struct_passwd]:
    """The users that PostgreSQL may run as when root cannot create a user namespace, the preferred one first."""
    found = []
    for name in _FALLBACK_USERS:
        with contextlib.suppress(KeyError):
            found.append(pwd.getpwnam(name))
    return found


class Folder:
    """A data folder that has been checked. Use it with `with`, or close it."""

    def __init__(self, path: Path) -> None:
        """Creates the folder where it is missing. Raises UntrustedFolder, and OSError when it cannot be opened.

        A folder of ours that others may read, or an empty one that they may write, gets mode 0700. One that others
        may write and that already holds something is rejected: they may have put it there.
        """
        self.path = path.absolute()
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_parents(self.path)
        try:
            self.descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            if self.path.is_symlink():
                raise UntrustedFolder(
                    f"{self.path} is a symbolic link. Name the folder it leads to instead."
                ) from None
            raise
        try:
            self._check(os.fstat(self.descriptor))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Safe to repeat."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def open(self, name: str, flags: int, *, private: bool = False) -> int:
        """A descriptor of a regular file of ours; with O_CREAT it is created with mode 0600.

        `private`: the file holds a secret of this very user, and must have mode 0600 or less.
        Raises UntrustedFolder, FileNotFoundError, and FileExistsError with O_EXCL.
        """
        path = self.path / name
        try:
            # O_NONBLOCK: opening a pipe must not wait for its other end.
            opened = os.open(
                name, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600, dir_fd=self.descriptor
            )
        except (FileNotFoundError, FileExistsError):
            raise
        except OSError:
            if path.is_symlink():
                raise UntrustedFolder(f"{path} is a symbolic link. Delete it and start again.") from None
            raise
        try:
            _check_file(path, os.fstat(opened), private=private)
        except BaseException:
            os.close(opened)
            raise
        return opened

    def read(self, name: str, *, private: bool = False) -> str:
        """The text of a file. Raises UntrustedFolder and FileNotFoundError."""
        with os.fdopen(self.open(name, os.O_RDONLY, private=private), encoding="utf-8") as file:
            return file.read()

    def write(self, name: str, text: str, *, replace: bool = False) -> None:
        """Writes a file with mode 0600. `replace`: as a new file, in place of whatever has the name.

        Raises UntrustedFolder.
        """
        if replace:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self.descriptor)
        # Truncated only after the check: what a hard link leads to keeps its content.
        flags = os.O_WRONLY | os.O_CREAT | (os.O_EXCL if replace else 0)
        with os.fdopen(self.open(name, flags), "w", encoding="utf-8") as file:
            file.truncate()
            file.write(text)

    def subfolder(self, name: str) -> bool:
        """Whether there is a folder of this name. Raises UntrustedFolder unless it is a real one, and only ours."""
        path = self.path / name
        try:
            found = os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if not stat.S_ISDIR(found.st_mode):
            what = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "not a folder"
            raise UntrustedFolder(f"{path} is {what}. Delete it and start again.")
        _check_owner(path, found)
        if found.st_mode & _OTHERS_WRITE:
            raise UntrustedFolder(
                f"Other users may write in {path}. Make sure that they have not, then chmod 700."
            )
        return True

    def _check(self, found: os.stat_result) -> None:
        _check_owner(self.path, found)
        if not found.st_mode & _OTHERS:
            return
        if found.st_mode & _OTHERS_WRITE and os.listdir(self.descriptor):  # noqa: PTH208  # by descriptor
            raise UntrustedFolder(
                f"Other users may write in {self.path}. Use another data folder, or make sure that they have put "
                f"nothing there and run: chmod 700 {self.path}"
            )
        os.fchmod(self.descriptor, 0o700)


def _check_owner(path: Path, found: os.stat_result) -> None:
    ours = {os.geteuid()}
    if os.geteuid() == 0:
        ours.update(user.pw_uid for user in fallback_users())
    if found.st_uid not in ours:
        raise UntrustedFolder(
            f"{path} belongs to another user ({_name(found.st_uid)}). Use another data folder, or run as its owner."
        )


def _check_file(path: Path, found: os.stat_result, *, private: bool) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise UntrustedFolder(f"{path} is not a regular file. Delete it and start again.")
    if found.st_nlink > 1:
        raise UntrustedFolder(f"{path} has a second name (a hard link). Replace it with a copy.")
    if not private:
        _check_owner(path, found)
    elif found.st_uid != os.geteuid():
        raise UntrustedFolder(
            f"{path} belongs to another user ({_name(found.st_uid)}). Use another data folder."
        )
    if found.st_mode & (_OTHERS if private else _OTHERS_WRITE):
        verb = "read" if private else "write"
        raise UntrustedFolder(
            f"Other users may {verb} {path}. If it is yours, run: chmod 600 {path}; else use another data folder."
        )


def _check_parents(path: Path) -> None:
    """In a folder that everyone may write, and that is not sticky like /tmp, anyone can put another in its place."""
    for parent in path.resolve().parents:
        mode = parent.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise UntrustedFolder(
                f"Any user may replace {path}, since {parent} has mode {stat.S_IMODE(mode):04o}. "
                f"Use another data folder, or run: chmod o-w {parent}"
            )


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
