"""Sources: what an address stands for, and that only names and bytes make its identity."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.text.folders import PassedOver, in_words
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


def test_links_to_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data")
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere" / "deep" / "c.txt").write_text("C")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "sub" / "up").symlink_to(folder)
    (tmp_path / "elsewhere" / "deep" / "back").symlink_to(tmp_path / "elsewhere")
    (folder / "sub" / "gone.txt").symlink_to(tmp_path / "nothing")
    os.mkfifo(folder / "pipe.txt")
    found = resolve_source(str(folder), tmp_path / "cache")
    assert names(found) == ["b.txt", "linked/deep/c.txt", "sub/a.md"]
    assert found.passed_over == (
        PassedOver("picture.png", 2, "unknown ending"),
        PassedOver("pipe.txt", 0, "a device or a pipe"),
        PassedOver("sub/gone.txt", 0, "a link that leads nowhere"),
    )
    assert "1 (unknown ending .png, 2 bytes)" in in_words(found.passed_over)


def test_what_is_passed_over_is_part_of_the_identity(tmp_path: Path) -> None:
    """So that a manifest never tells of other files than were there."""
    folder = make_folder(tmp_path / "data")
    before = resolve_source(str(folder), tmp_path / "cache").digest
    (folder / "notes.docx").write_bytes(b"notes")
    assert resolve_source(str(folder), tmp_path / "cache").digest != before


def test_names_that_are_no_utf8_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.txt")).write_text("coffee")
    for _ in range(2):  # the second time from the remembered hashes
        (file,) = resolve_source(str(folder), tmp_path / "cache").files
        assert file.name == "caf\\udce9.txt" and file.path.read_text() == "coffee"


def test_a_data_set_that_was_saved_is_its_tables(tmp_path: Path) -> None:
    import datasets

    saved = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["a", "b"]})})
    saved.save_to_disk(str(tmp_path / "data"))
    found = resolve_source(str(tmp_path / "data"), tmp_path / "cache")
    assert names(found) == ["train/data-00000-of-00001.arrow"]
    assert {file.name for file in found.passed_over} == {
        "dataset_dict.json", "train/dataset_info.json", "train/state.json"
    }  # fmt: skip
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "state.json").write_text('{"text": "mine"}')
    assert names(resolve_source(str(tmp_path / "own"), tmp_path / "cache")) == ["state.json"]


@pytest.mark.parametrize("path", ["data/sub", "data/sub/a.md", "data"])
def test_what_cannot_be_opened_is_named(tmp_path: Path, path: str) -> None:
    """In a process without the right of root to read everything."""
    make_folder(tmp_path / "data")
    (tmp_path / path).chmod(0)
    code = (
        "import sys; from pathlib import Path; from tasks.text.source import resolve_source\n"
        "try: resolve_source(sys.argv[1], Path(sys.argv[2]))\nexcept ValueError as error: print(error)"
    )
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]
    command = [*(drop if os.getuid() == 0 else []), sys.executable, "-c", code, str(tmp_path / "data"), str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True)
    (tmp_path / path).chmod(0o755)
    assert f"{tmp_path / path}: cannot be read (Permission denied)" in found.stdout, found.stderr


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
