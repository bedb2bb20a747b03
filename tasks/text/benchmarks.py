"""Benchmark files and their names: one name for what is protected, what is scored and what the summary shows."""

from pathlib import PurePosixPath

from tasks.text.source import Source, SourceFile

CONVERSATIONS, PREFERENCES = "conversations", "preferences"
"""The validation splits, which are protected like benchmarks under these names."""


def benchmark_name(file: SourceFile) -> str:
    """`mmlu/law.jsonl.gz` is mmlu/law: two folders may each have a file of one name."""
    path = PurePosixPath(file.name)
    return str(path.with_name(path.name.partition(".")[0]))


def benchmark_files(benchmarks: Source) -> dict[str, SourceFile]:
    """Each benchmark's file by its name.

    Raises:
        ValueError: two files have one name, or one has the name of a validation split.
    """
    named: dict[str, SourceFile] = {}
    for file in benchmarks.files:
        name = benchmark_name(file)
        if name in (CONVERSATIONS, PREFERENCES):
            raise ValueError(f"The benchmark {file.name} has the name of the validation split {name}: rename the file.")
        if name in named:
            raise ValueError(
                f"The benchmarks {named[name].name} and {file.name} are both named {name}, so their figures would mix: "
                "rename one of the files."
            )
        named[name] = file
    return named
