"""Keys of clients and networks of engines."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_contracts.ping import Ping, PingType
from pd_contracts.settings import SettingsError, load
from pd_proxy.access import MAX_KEYS_BYTES, Keys, allowed, check_networks, digests, read_keys
from pd_proxy.engines.registry import PingRefusedError
from pd_proxy.settings import Settings


def test_keys_are_lines(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\nkey-one \n\nkey-two\n")
    assert read_keys(str(path)) == (b"key-one", b"key-two")
    assert read_keys("") == ()


def test_a_file_without_keys_does_not_open_the_proxy_to_all(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# none yet\n")
    with pytest.raises(OSError, match="holds no key"):
        read_keys(str(tmp_path / "keys"))
    with pytest.raises(OSError, match="missing"):
        read_keys(str(tmp_path / "missing"))


@given(st.binary(min_size=1).filter(lambda key: key == key.strip()))
def test_only_a_key_is_allowed(key: bytes) -> None:
    header = f"Bearer {key.decode('latin-1')}"
    assert allowed(header, digests([b"other key", key]))
    assert not allowed(header + "x", digests([key]))
    assert not allowed(header, digests([]))


@pytest.mark.parametrize(
    ("header", "lets_in"),
    [
        ("Bearer key", True),
        ("bearer key", True),
        ("BEARER key", True),
        ("Bearer  key", True),
        ("key", False),
        ("Basic key", False),
        ("Bearer", False),
        ("Bearer ", False),
        ("", False),
        ("Bearer Bearer key", False),
    ],
)
def test_a_key_needs_its_scheme_in_any_case(header: str, lets_in: bool) -> None:
    assert allowed(header, digests([b"key"])) is lets_in


def test_the_file_of_keys_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path, now = tmp_path / "keys", [0.0]
    path.write_text("old\n")
    keys = Keys(str(path), lambda: now[0])

    def lets_in(*, later: float) -> list[bool]:
        now[0] += later
        return [keys.allow(f"Bearer {key}") for key in ("old", "new")]

    assert lets_in(later=0) == [True, False]
    path.write_text("new key\nnew\n")
    assert lets_in(later=0.5) == [True, False]
    assert lets_in(later=0.5) == [False, True]
    path.unlink()
    assert lets_in(later=1) == [False, True]
    other = tmp_path / "other"
    other.write_text("old\n")
    other.rename(path)
    assert lets_in(later=1) == [True, False]


@pytest.fixture(name="watched")
def _watched(tmp_path: Path) -> Callable[[], list[str]]:
    """Two keys that come and go in the file `keys`; returns which of them are valid a second later."""
    (tmp_path / "keys").write_text("old\n")
    now = [0.0]
    keys = Keys(str(tmp_path / "keys"), lambda: now[0])

    def valid() -> list[str]:
        now[0] += 1
        return [key for key in ("old", "new") if keys.allow(f"Bearer {key}")]

    return valid


@pytest.mark.parametrize("content", ["", "\n", "# revoked\n"])
def test_a_file_without_keys_lets_nobody_in(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    path, now = tmp_path / "keys", [0.0]
    path.write_text("key\n")
    keys = Keys(str(path), lambda: now[0])
    path.write_text(content)
    now[0] = 1.0

    for header in ("Bearer key", "Bearer ", "", "Bearer key"):
        assert not keys.allow(header)
    assert keys, "clients still need a key"
    assert keys.fault() == "API_KEYS_FILE holds no key: every client is refused"
    assert [record.levelname for record in caplog.records] == ["WARNING"]

    path.write_text("key\n")
    assert keys.allow("Bearer key"), "somebody had emptied the file to write it"
    assert not keys.fault()


@pytest.mark.parametrize("how", ["deleted", "a folder", "too large", "unreadable"])
def test_a_file_that_cannot_be_read_keeps_its_keys_and_that_is_told(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, now = tmp_path / "keys", [0.0]
    path.write_text("key\n")
    keys = Keys(str(path), lambda: now[0])

    def refused(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as locked:
        path.unlink()
        if how == "a folder":
            path.mkdir()
        elif how == "too large":
            path.write_bytes(b"#" * (MAX_KEYS_BYTES + 1))
        elif how == "unreadable":
            path.write_text("key\n")
            locked.setattr(os, "open", refused)  # root may read every file
        for now[0] in (1.0, 2.0, 3.0):
            assert keys.allow("Bearer key")
            assert not keys.allow("Bearer other")
        assert keys.fault().startswith("API_KEYS_FILE cannot be read")
        assert keys.fault().endswith("the keys read last stay valid")
        assert str(tmp_path) not in keys.fault(), "everybody may read /stats"
        assert [record.levelname for record in caplog.records] == ["WARNING"]

    if how == "a folder":
        path.rmdir()
    path.write_text("other\n")
    now[0] = 4.0
    assert keys.allow("Bearer other")
    assert not keys.fault()


def test_a_file_that_was_away_and_is_back_as_it_was_is_in_order(tmp_path: Path) -> None:
    path, now = tmp_path / "keys", [0.0]
    path.write_text("key\n")
    (tmp_path / "link").symlink_to("keys")
    keys = Keys(str(tmp_path / "link"), lambda: now[0])
    (tmp_path / "link").unlink()
    now[0] = 1.0
    assert keys.fault()
    (tmp_path / "link").symlink_to("keys")
    now[0] = 2.0
    assert not keys.fault()


def test_a_file_that_could_not_be_read_for_a_moment_is_read_later(
    tmp_path: Path, watched: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_descriptor(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    (tmp_path / "keys").write_text("new key\nnew\n")
    with monkeypatch.context() as short:
        short.setattr(os, "open", no_descriptor)
        assert watched() == ["old"]
    assert watched() == ["new"]


def test_a_pipe_in_the_files_place_makes_nobody_wait(tmp_path: Path, watched: Callable[[], list[str]]) -> None:
    (tmp_path / "keys").unlink()
    os.mkfifo(tmp_path / "keys")
    found: list[list[str]] = []
    asking = threading.Thread(target=lambda: found.append(watched()), daemon=True)
    asking.start()
    asking.join(timeout=20)
    assert found == [["old"]]


def test_a_pipe_is_read_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    os.mkfifo(path)
    writing = threading.Thread(target=path.write_text, args=("key\n",))
    writing.start()
    assert read_keys(str(path)) == (b"key",)
    writing.join()


def test_a_file_that_is_too_large_is_refused_and_the_old_keys_stay(
    tmp_path: Path, watched: Callable[[], list[str]]
) -> None:
    (tmp_path / "keys").write_bytes(b"new\n" + b"#" * MAX_KEYS_BYTES)
    assert watched() == ["old"]
    with pytest.raises(OSError, match=f"API_KEYS_FILE: .* larger than {MAX_KEYS_BYTES} bytes"):
        read_keys(str(tmp_path / "keys"))


def test_a_file_of_the_same_size_and_time_is_noticed(tmp_path: Path, watched: Callable[[], list[str]]) -> None:
    path = tmp_path / "keys"
    before = path.stat()
    path.write_text("new\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert watched() == ["new"]


def test_a_secret_of_kubernetes_is_swapped_by_a_link(tmp_path: Path) -> None:
    for folder, key in (("..one", "old"), ("..two", "new")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "keys").write_text(f"{key}\n")
    (tmp_path / "..data").symlink_to("..one")
    (tmp_path / "keys").symlink_to("..data/keys")
    now = [0.0]
    keys = Keys(str(tmp_path / "keys"), lambda: now[0])

    (tmp_path / "..data_tmp").symlink_to("..two")
    (tmp_path / "..data_tmp").replace(tmp_path / "..data")
    now[0] = 1.0

    assert not keys.allow("Bearer old")
    assert keys.allow("Bearer new")


def test_without_a_file_nobody_needs_a_key(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("k")

    assert not Keys("")
    assert Keys(str(tmp_path / "keys"))


@pytest.mark.parametrize(
    ("host", "network", "believed"),
    [
        ("10.1.2.3", "10.0.0.0/8", True),
        ("10.1.2.3", "192.168.0.0/16,10.0.0.0/8", True),
        ("11.1.2.3", "10.0.0.0/8", False),
        ("engine", "10.0.0.0/8", False),
        ("engine", "", True),
    ],
)
def test_engines_announce_addresses_in_the_networks(host: str, network: str, believed: bool) -> None:
    networks = load(Settings, {"PING_NETWORKS": network}).networks()
    for http, kv in ((host, "10.0.0.1"), ("10.0.0.1", host)):
        ping = Ping(PingType.DECODE, f"{http}:8000", f"{kv}:21001")
        if believed:
            check_networks(ping, networks)
        else:
            with pytest.raises(PingRefusedError) as caught:
                check_networks(ping, networks)
            assert caught.value.reason == "network"


def test_a_network_that_is_none_is_refused_at_the_start() -> None:
    with pytest.raises(SettingsError, match="PING_NETWORKS"):
        load(Settings, {"PING_NETWORKS": "10.0.0.1/8"})
