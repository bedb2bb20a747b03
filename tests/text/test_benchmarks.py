"""Benchmarks have one name each, and no two the same."""

from pathlib import Path

import pytest

from tasks.text.benchmarks import benchmark_files
from tasks.text.source import Source, resolve_source


def source_of(folder: Path, *names: str) -> Source:
    """A source of files with these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name}\n")
    return resolve_source(str(folder), folder.parent / "cache")


def test_a_benchmark_is_named_by_its_file_without_endings_in_its_folder(tmp_path: Path) -> None:
    names = ("a/test.jsonl", "b/test.jsonl", "quiz.txt", "v1.2/quiz.jsonl", "v1.3/quiz.jsonl")
    found = benchmark_files(source_of(tmp_path / "tests", *names))
    assert list(found) == ["a/test", "b/test", "quiz", "v1.2/quiz", "v1.3/quiz"]
    assert tuple(file.name for file in found.values()) == names


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"law.jsonl and law.txt are both named law.*rename one"):
        benchmark_files(source_of(tmp_path / "tests", "law.jsonl", "law.txt"))


@pytest.mark.parametrize("name", ["conversations.jsonl", "preferences.txt"])
def test_the_name_of_a_validation_split_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"The benchmark {name} has the name of the validation split"):
        benchmark_files(source_of(tmp_path / "tests", name))
