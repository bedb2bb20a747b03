"""With the judge added: what it drops is in no token, and the stages after it are told."""

from pathlib import Path

from tests.whole.newcomer.small_run import manifest_of, prepared, texts_to_pack, write_sources

PROSE = (
    "This page is about {}, and the people who have read it know that it was to be taken down at the end of the day."
)


def test_the_judge_drops_what_it_was_asked_to(tmp_path: Path) -> None:
    files = {f"{name}.txt": PROSE.format(name) for name in ("gone", "staying")}
    sections, home = write_sources(tmp_path, files), tmp_path / "home"
    assert PROSE.format("gone") in texts_to_pack(home, prepared(sections, home))
    record = prepared(sections, home, ["takedown.files=[gone.txt]"])
    left = texts_to_pack(home, record)
    assert PROSE.format("gone") not in left and PROSE.format("staying") in left
    metrics = manifest_of(home, record, "takedown").metrics
    assert metrics["documents_kept"] == metrics["documents_in"] - 1
    for label in ("decontaminate", "tokenizer", "pack"):
        assert "takedown" in manifest_of(home, record, label).inputs
