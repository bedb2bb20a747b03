"""Every mistake ends in one paragraph that says what is wrong and what to do, and loses nothing that was built."""

import json
import os
from pathlib import Path

import pytest

from flows.cli.main import EXIT_USER_ERROR, main
from tasks.mechanism.store import STORE_FORMAT, Store
from tests.helpers import tiny

PROSE = (
    "The committee met in the old town hall to discuss the plan for the new bridge over the river. Most of the members "
    "agreed that it should be built of stone, because the wooden one had been carried away by the floods of last "
    "spring, and that the costs were to be shared by the two parishes. The engineer, who was from the city, showed "
    "them his drawings and explained why the arches had to be higher than before.\n"
)


def run(home: Path, *arguments: str) -> list[str]:
    """A run at the smallest size, without servers."""
    settings = [part for setting in tiny.SETTINGS for part in ("--set", setting)]
    return ["run", "--home", str(home), "--in-process", "--no-tracking", "--workers", "1", *settings, *arguments]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command prints when it refuses; fails on success or on a stack trace."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == EXIT_USER_ERROR
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    return " ".join(printed.split())


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Sixty short, different texts."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number:02}.txt").write_text(f"Report number {number}, {number * 7919} words.\n" + PROSE)
    return folder


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    """Forty conversations in OpenAI's layout."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is {n}?"},
                {"role": "assistant", "content": f"A number: {n}."},
            ]
        }
        for n in range(40)
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Forty preference pairs."""
    rows = [{"prompt": f"What is {n}?", "chosen": f"A number: {n}.", "rejected": "No idea."} for n in range(40)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_unknown_preset_and_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Did you mean demo?" in refused(["plan", "demp", "--home", str(tmp_path)], capsys)
    message = refused(["plan", "--home", str(tmp_path), "--set", "dpo.betta=1"], capsys)
    assert "dpo.betta is not a field" in message and "Did you mean dpo.beta?" in message


def test_missing_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(run(tmp_path / "home", "--corpus", str(tmp_path / "nowhere")), capsys)
    assert "nowhere" in message and "no such file or folder" in message


def test_empty_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    message = refused(run(tmp_path / "home", "--corpus", str(tmp_path / "empty")), capsys)
    assert "found no file that can be read" in message and ".jsonl" in message


def test_filter_that_leaves_nothing(tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in corpus.iterdir():
        file.write_text("x " * 30)
    message = refused(run(tmp_path / "home", "--corpus", str(corpus)), capsys)
    assert "60" in message and "filter." in message


def test_file_that_is_not_utf8(tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (corpus / "latin.txt").write_bytes("Übergrößenträger".encode("latin-1") * 50)
    message = refused(run(tmp_path / "home", "--corpus", str(corpus), "--set", "ingest.max_bad_share=0"), capsys)
    assert "latin.txt" in message and "UTF-8" in message and "max_bad_share" in message


def test_broken_json_line_names_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.dumps({"text": f"{n} {PROSE}"}) for n in range(50)]
    lines[6] = '{"text": "broken'
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    message = refused(run(tmp_path / "home", "--corpus", str(tmp_path / "corpus.jsonl")), capsys)
    assert "corpus.jsonl" in message and "7" in message and "ingest.max_bad_share" in message


def test_preferences_without_rejected(
    tmp_path: Path, corpus: Path, chats: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b"}\n' * 40)
    message = refused(
        run(
            tmp_path / "home",
            *("--corpus", str(corpus), "--sft", str(chats), "--preferences", str(tmp_path / "pairs.jsonl")),
            *("--set", "dedup.threshold=1"),
        ),
        capsys,
    )
    assert "pairs.jsonl" in message and "rejected" in message and "chosen" in message


def test_vocabulary_larger_than_the_text(
    tmp_path: Path, corpus: Path, chats: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    sources = ("--corpus", str(corpus), "--sft", str(chats), "--preferences", str(pairs))
    message = refused(run(home, *sources, "--set", "tokenizer.vocab_size=100000"), capsys)
    assert "tokenizer.vocab_size asks for 100000" in message and "or less" in message
    built = {path.parent.name for path in (home / "keys").glob("*/*.json")}
    assert {"ingest", "filter", "dedup", "decontaminate"} <= built, "what was built before must stay"


def test_full_disk(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's own answer, on a device that is always full."""
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full is needed, which Linux has")
    real_open = os.fsync

    def full(descriptor: int) -> None:
        with Path("/dev/full").open("wb", buffering=0) as device:
            device.write(b"x")
        real_open(descriptor)

    home = tmp_path / "home"
    (home / "runs").mkdir(parents=True)

    (home / "FORMAT").write_text(f"{STORE_FORMAT}\n")
    monkeypatch.setattr(Store, "publish", lambda store, directory: full(0))
    message = refused(run(home, "--corpus", str(corpus)), capsys)
    assert "No space left on the disk" in message and "bessemer gc" in message


def test_home_of_a_newer_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "FORMAT").write_text("7\n")
    message = refused(["show", "--home", str(tmp_path)], capsys)
    assert "format '7'" in message and "newer version" in message


def test_no_run_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "There is no run" in refused(["show", "--home", str(tmp_path)], capsys)
    assert "There is no run" in refused(["chat", "--home", str(tmp_path), "--message", "hi"], capsys)
