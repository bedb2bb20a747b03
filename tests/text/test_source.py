"""Sources: what an address stands for, and that only names and bytes make its identity."""

import hashlib
import json
import os
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.text.readers.hub import DatasetSpec, download_dataset, parse_dataset_spec
from tasks.text.source import Source, SourceFile, group_files, group_name, resolve_source, source_name, source_of_files


def make_folder(path: Path) -> Path:
    (path / "sub").mkdir(parents=True)
    (path / "b.txt").write_text("B")
    (path / "sub" / "a.md").write_text("A")
    (path / "picture.png").write_bytes(b"no")
    (path / ".hidden").mkdir()
    (path / ".hidden" / "c.txt").write_text("no")
    return path


def names(source: Source) -> list[str]:
    return [file.name for file in source.files]


def test_folder_file_and_glob(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data")
    assert names(resolve_source(str(folder), tmp_path / "cache")) == ["b.txt", "sub/a.md"]
    assert names(resolve_source(str(folder / "b.txt"), tmp_path / "cache")) == ["b.txt"]
    assert names(resolve_source(str(folder / "**" / "*.md"), tmp_path / "cache")) == ["sub/a.md"]
    assert names(resolve_source(str(folder / "*.[tp]*"), tmp_path / "cache")) == ["b.txt"]


def test_identity_is_names_and_bytes(tmp_path: Path) -> None:
    one = resolve_source(str(make_folder(tmp_path / "one")), tmp_path / "cache")
    two = resolve_source(str(make_folder(tmp_path / "elsewhere")), tmp_path / "other-cache")
    assert one.digest == two.digest
    (tmp_path / "one" / "b.txt").write_text("C")
    changed = resolve_source(str(tmp_path / "one"), tmp_path / "cache")
    (tmp_path / "one" / "b.txt").rename(tmp_path / "one" / "renamed.txt")
    renamed = resolve_source(str(tmp_path / "one"), tmp_path / "cache")
    assert len({one.digest, changed.digest, renamed.digest}) == 3


def test_hashes_are_remembered_until_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    first = source_of_files([("a.txt", path)], tmp_path / "cache")
    memo = tmp_path / "cache" / "hashes.json"
    memo.write_text(memo.read_text().replace(first.files[0].sha256, "0" * 64))
    assert source_of_files([("a.txt", path)], tmp_path / "cache").files[0].sha256 == "0" * 64, "the memo is used"
    stamp = path.stat().st_mtime_ns
    path.write_text("two")
    os.utime(path, ns=(stamp, stamp))
    changed = source_of_files([("a.txt", path)], tmp_path / "cache")
    assert changed.files[0].sha256 == hashlib.sha256(b"two").hexdigest()
    memo.write_text("{torn")
    assert source_of_files([("a.txt", path)], tmp_path / "cache").files[0].bytes == 3


def test_a_file_put_in_place_of_another_of_equal_size_and_times_is_read(tmp_path: Path) -> None:
    """As tar with fixed times, `rsync -t`, git-annex and Nix do."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for path, text in ((folder / "a.txt", "old"), (tmp_path / "new.txt", "new")):
        path.write_text(text)
        os.utime(path, (1, 1))
    before = resolve_source(str(folder), tmp_path / "cache").digest
    (tmp_path / "new.txt").replace(folder / "a.txt")
    assert resolve_source(str(folder), tmp_path / "cache").digest != before


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("no-such-folder", "no such file or folder"),
        ("/no/such/folder/at/all", "no such file or folder"),
        ("{tmp}/empty", "found no file that can be read"),
        ("{tmp}/a.exe", "files that end in .exe cannot"),
        ("{tmp}/*.nothing", "found no file that can be read"),
        ("memory://no/such/bucket", "cannot be read"),
        ("nosuchscheme://x", "cannot be read"),
    ],
)
def test_nothing_there_is_said_plainly(tmp_path: Path, spec: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.exe").write_text("x")
    with pytest.raises(ValueError, match=words):
        resolve_source(spec.format(tmp=tmp_path), tmp_path / "cache")


def test_fsspec_address(tmp_path: Path) -> None:
    system = fsspec.filesystem("memory")
    system.pipe({"/bucket/in/a.txt": b"A", "/bucket/in/deep/b.jsonl": b'{"text": "B"}', "/bucket/in/c.bin": b"C"})
    folder = resolve_source("memory://bucket/in", tmp_path)
    assert names(folder) == ["a.txt", "deep/b.jsonl"]
    assert folder.files[1].path.read_bytes() == b'{"text": "B"}'
    assert names(resolve_source("memory://bucket/in/*.txt", tmp_path)) == ["a.txt"]
    assert names(resolve_source("memory://bucket/in/deep/b.jsonl", tmp_path)) == ["b.jsonl"]
    system.pipe("/bucket/in/a.txt", b"AA")
    assert resolve_source("memory://bucket/in", tmp_path).files[0].bytes == 2, "a new version is copied again"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("org/name", DatasetSpec("org/name", (), 0)),
        ("org/na.me:train", DatasetSpec("org/na.me", ("train",), 0)),
        ("org/name:sample-10BT:train[:1000]", DatasetSpec("org/name", ("sample-10BT", "train"), 1000)),
        ("name", None),
        ("a/b/c", None),
        ("/org/name", None),
    ],
)
def test_hub_names(spec: str, expected: DatasetSpec | None) -> None:
    assert parse_dataset_spec(spec) == expected


def test_hub_data_set_is_streamed_into_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local data set in the place of the hub: `datasets` opens both alike."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "org" / "name"
    folder.mkdir(parents=True)
    for split, count in (("train", 30), ("test", 5)):
        lines = "".join(json.dumps({"text": f"{split} {i}"}) + "\n" for i in range(count))
        (folder / f"{split}.jsonl").write_text(lines)
    cache = tmp_path / "cache"
    whole = source_of_files(download_dataset(DatasetSpec("org/name", (), 0), cache), cache)
    assert names(whole) == ["org/name/00000.parquet"]
    import pyarrow.parquet as pq

    assert pq.read_table(whole.files[0].path)["text"].to_pylist() == [f"train {i}" for i in range(30)]
    ((_, head),) = download_dataset(DatasetSpec("org/name", ("test",), 3), cache)
    assert pq.read_table(head)["text"].to_pylist() == ["test 0", "test 1", "test 2"]
    (folder / "train.jsonl").unlink()
    assert source_of_files(download_dataset(DatasetSpec("org/name", (), 0), cache), cache) == whole, "kept"


def test_absent_hub_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"no-org/no-data: there is no such file or folder, and the hub gives no such"):
        resolve_source("no-org/no-data", tmp_path)


def files(sizes: dict[str, int]) -> list[SourceFile]:
    return [SourceFile(name, Path(name), size, "") for name, size in sorted(sizes.items())]


sizes = st.dictionaries(st.text("abcdef/", min_size=1, max_size=8), st.integers(0, 2000), min_size=1, max_size=60)


@settings(max_examples=200, deadline=None)
@given(sizes, st.text("abcdef/", min_size=1, max_size=8), st.integers(0, 2000))
def test_a_new_file_touches_its_own_group_only(sizes: dict[str, int], name: str, size: int) -> None:
    before = {tuple(f.name for f in group): group_name(group) for group in group_files(files(sizes), 1000)}
    after = {tuple(f.name for f in g): group_name(g) for g in group_files(files(sizes | {name: size}), 1000)}
    assert [n for group in after for n in group] == sorted(sizes | {name: size})
    assert len(set(after.values())) == len(after)
    changed = [group for group in before if before[group] != after.get(group)]
    added = {name} - sizes.keys()
    touched = [group for group in after if added & set(group)]
    assert len(changed) <= 2 if name in sizes else len(changed) <= 1
    assert len(touched) == len(added)


def test_groups_have_about_the_asked_size() -> None:
    groups = group_files(files({f"file-{i:05d}": 100 for i in range(10_000)}), 10_000)
    assert 70 <= len(groups) <= 140


def test_source_names() -> None:
    assert source_name("numpy/linalg/_linalg.py") == "numpy"
    assert source_name("peps.jsonl.gz") == "peps"
