"""The store publishes whole or not at all, notices damage, and never trusts a name for bytes."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.mechanism.store import Store, StoreDamage, digest_directory, file_sha256, write_atomically


def make_directory(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def test_equal_content_has_one_object(tmp_path: Path) -> None:
    store = Store(tmp_path / "home")
    first = store.publish(make_directory(tmp_path / "a", {"x": b"1", "y/z": b"2"}))
    second = store.publish(make_directory(tmp_path / "b", {"y/z": b"2", "x": b"1"}))
    assert first == second
    assert [path.name for path in store.objects.iterdir()] == [first.digest]


@given(st.dictionaries(st.sampled_from(["a", "b", "c/d"]), st.binary(max_size=20), min_size=1), st.data())
def test_digest_moves_with_every_byte_and_name(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("digest")
    before, size = digest_directory(make_directory(root / "one", files))
    assert size == sum(map(len, files.values()))
    name = data.draw(st.sampled_from(sorted(files)))
    changed = {**files, name: files[name] + b"!"}
    assert digest_directory(make_directory(root / "two", changed))[0] != before
    renamed = {(f"{key}x" if key == name else key): value for key, value in files.items()}
    assert digest_directory(make_directory(root / "three", renamed))[0] != before


def test_flipped_byte_with_old_times_is_noticed(tmp_path: Path) -> None:
    store = Store(tmp_path / "home")
    artifact = store.publish(make_directory(tmp_path / "a", {"x": b"hello"}))
    store.open(artifact.digest)
    target = artifact.path / "x"
    status = target.stat()
    target.write_bytes(b"hellO")
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(StoreDamage, match="changed on disk"):
        store.open(artifact.digest)


def test_a_file_replaced_by_one_of_equal_size_and_times_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"old")
    (tmp_path / "other").write_bytes(b"new")
    for name in ("x", "other"):
        os.utime(tmp_path / name, (1, 1))
    before = file_sha256(tmp_path / "x")
    (tmp_path / "other").replace(tmp_path / "x")
    assert file_sha256(tmp_path / "x") != before


def test_missing_object_and_extra_file_are_noticed(tmp_path: Path) -> None:
    store = Store(tmp_path / "home")
    artifact = store.publish(make_directory(tmp_path / "a", {"x": b"hello"}))
    (artifact.path / "extra").write_bytes(b"")
    with pytest.raises(StoreDamage, match="changed on disk"):
        store.open(artifact.digest)
    store.discard(artifact.digest)
    with pytest.raises(StoreDamage, match="is gone"):
        store.open(artifact.digest)


def test_publishing_over_a_damaged_twin_replaces_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "home")
    artifact = store.publish(make_directory(tmp_path / "a", {"x": b"hello"}))
    (artifact.path / "x").write_bytes(b"damage")
    again = store.publish(make_directory(tmp_path / "b", {"x": b"hello"}))
    assert again.digest == artifact.digest
    assert (store.open(again.digest).path / "x").read_bytes() == b"hello"


def test_home_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    Store(tmp_path)
    (tmp_path / "FORMAT").write_text("99\n")
    with pytest.raises(ValueError, match="format '99'.*newer version.*--home"):
        Store(tmp_path)


def test_home_of_an_older_version_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    """Also where it holds artifacts: their keys are no longer made, so a home half old and half new would only grow."""
    (tmp_path / "FORMAT").write_text("1\n")
    (tmp_path / "keys").mkdir()
    with pytest.raises(ValueError, match="format '1'.*reads format 2.*older version.*a rerun rebuilds.*--home.*remove"):
        Store(tmp_path)
    assert (tmp_path / "FORMAT").read_text() == "1\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["FORMAT", "keys"]


def test_home_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written.*--home"):
        Store(tmp_path / "file" / "home")


def test_atomic_write_leaves_nothing_aside(tmp_path: Path) -> None:
    write_atomically(tmp_path / "x", b"one")
    write_atomically(tmp_path / "x", b"two")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"two"
