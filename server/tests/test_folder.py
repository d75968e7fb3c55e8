"""The data folder: what another user has prepared is rejected, no link is followed, and what is ours keeps working."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from wabery_server import main
from wabery_server.cli.dev import prepare_folder
from wabery_server.db.embedded import Embedded, EmbeddedError, Folder, UntrustedFolder
from wabery_server.settings import Settings

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")

STRANGER = 12345
PRECIOUS = "do not touch\n"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of ours outside the data folder."""
    path = tmp_path / "victim"
    path.write_text(PRECIOUS)
    path.chmod(0o600)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data-folder"
    path.mkdir(mode=0o700)
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def start_embedded(data: Path) -> None:
    Embedded.open(data).close()


def read_secret(data: Path) -> None:
    main._own_secret(data)


def start_dev(data: Path) -> None:
    prepare_folder(data)


REFUSALS = (EmbeddedError, UntrustedFolder, main.CannotStart)

FILES: list[tuple[Callable[[Path], None], str]] = [
    (start_embedded, "lock"),
    (start_embedded, "postgres.log"),
    (read_secret, "secret.key"),
    (start_dev, ".gitignore"),
]


@pytest.mark.parametrize(("start", "name"), FILES)
@pytest.mark.parametrize("trap", ["symbolic link", "hard link", "pipe", "folder"])
def test_no_link_in_the_folder_is_followed(
    data: Path, victim: Path, start: Callable[[Path], None], name: str, trap: str
) -> None:
    if trap == "symbolic link":
        (data / name).symlink_to(victim)
    elif trap == "hard link":
        (data / name).hardlink_to(victim)
    elif trap == "pipe":
        os.mkfifo(data / name)
    else:
        (data / name).mkdir()

    with pytest.raises(REFUSALS) as refused:
        start(data)

    assert str(data / name) in str(refused.value) or f"'{name}'" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert victim.read_text() == PRECIOUS
    assert mode(victim) == 0o600


@pytest.mark.parametrize("name", ["data", "data.new", "run"])
def test_no_folder_in_the_folder_is_a_link(data: Path, tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o755)
    (elsewhere / "file").write_text(PRECIOUS)
    (data / name).symlink_to(elsewhere)

    with pytest.raises(EmbeddedError, match=f"{name} is a symbolic link") as refused:
        start_embedded(data)

    assert "\n" not in str(refused.value)
    assert [path.name for path in elsewhere.iterdir()] == ["file"]
    assert mode(elsewhere) == 0o755


def test_the_password_and_the_keys_of_dev_replace_a_link_and_leave_its_target(
    data: Path, victim: Path
) -> None:
    for name in ("password", "dev.env"):
        (data / name).symlink_to(victim)

    with Folder(data) as folder:
        for name in ("password", "dev.env"):
            folder.write(name, "secret", replace=True)

    assert victim.read_text() == PRECIOUS
    assert [(data / name).is_symlink() for name in ("password", "dev.env")] == [False, False]
    assert [mode(data / name) for name in ("password", "dev.env")] == [0o600, 0o600]


def test_a_folder_that_is_a_link_is_rejected(data: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(data)

    with pytest.raises(EmbeddedError, match="is a symbolic link"):
        start_embedded(link)

    assert list(data.iterdir()) == []


@as_root
@pytest.mark.parametrize("what", ["", "secret.key", "lock", "data"])
def test_what_belongs_to_another_user_is_rejected(data: Path, what: str) -> None:
    planted = data / what
    if what == "data":
        planted.mkdir(mode=0o700)
    elif what:
        planted.write_text("x" * 43)
        planted.chmod(0o600)
    os.chown(planted, STRANGER, STRANGER)

    with pytest.raises(REFUSALS, match="belongs to another user"):
        (read_secret if what == "secret.key" else start_embedded)(data)

    assert planted.stat().st_uid == STRANGER


@as_root
def test_root_takes_no_secret_from_the_user_that_postgresql_runs_as(data: Path) -> None:
    (data / "secret.key").write_text("x" * 43)
    (data / "secret.key").chmod(0o600)
    os.chown(data / "secret.key", 65534, 65534)

    with pytest.raises(main.CannotStart, match="belongs to another user"):
        read_secret(data)


@pytest.mark.parametrize("bits", [0o644, 0o640, 0o604, 0o660])
def test_a_secret_that_others_can_read_is_rejected_and_says_what_to_do(data: Path, bits: int) -> None:
    (data / "secret.key").write_text("x" * 43)
    (data / "secret.key").chmod(bits)

    with pytest.raises(main.CannotStart, match=f"chmod 600 {data}/secret.key"):
        read_secret(data)


@pytest.mark.parametrize("bits", [0o777, 0o770, 0o702, 0o1777])
def test_a_folder_that_others_may_write_is_rejected_once_it_holds_something(data: Path, bits: int) -> None:
    (data / "secret.key").write_text("x" * 43)
    (data / "secret.key").chmod(0o600)
    data.chmod(bits)

    for start in (start_embedded, read_secret, start_dev):
        with pytest.raises(REFUSALS, match="Other users may write"):
            start(data)

    assert mode(data) == bits & 0o777 or mode(data) == bits
    assert [path.name for path in data.iterdir()] == ["secret.key"]


@pytest.mark.parametrize(("bits", "files"), [(0o755, 1), (0o750, 1), (0o711, 1), (0o777, 0), (0o755, 0)])
def test_our_own_folder_that_is_too_open_is_closed(data: Path, bits: int, files: int) -> None:
    if files:
        (data / "file").touch()
    data.chmod(bits)

    Folder(data).close()

    assert mode(data) == 0o700


@pytest.mark.parametrize(("bits", "trusted"), [(0o777, False), (0o1777, True), (0o755, True), (0o775, True)])
def test_a_folder_that_any_user_could_replace_is_rejected(tmp_path: Path, bits: int, trusted: bool) -> None:
    parent = tmp_path / "shared"
    (parent / "between").mkdir(parents=True)
    parent.chmod(bits)

    if trusted:
        Folder(parent / "between/data").close()
    else:
        with pytest.raises(UntrustedFolder, match=f"chmod o-w {parent}"):
            Folder(parent / "between/data")


def test_a_secret_is_generated_once_and_read_by_its_owner_only(data: Path) -> None:
    first = main._own_secret(data)

    assert main._own_secret(data) == first
    assert len(first) >= 32
    assert mode(data / "secret.key") == 0o600


def test_a_bad_secret_stops_the_server_that_was_started_for_it(data: Path) -> None:
    (data / "secret.key").write_text("short\n")
    (data / "secret.key").chmod(0o600)

    with pytest.raises(main.CannotStart):
        main.Ground(Settings(data_dir=data))

    assert not (data / "data/postmaster.pid").exists()
