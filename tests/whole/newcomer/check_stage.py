"""With the stage added: a run carries it out, `--set` reaches its field, and what follows reads what it made."""

from pathlib import Path

from tests.whole.newcomer.small_run import prepared, texts_to_pack, write_sources

COMPOSED, DECOMPOSED = "Caf\u00e9", "Cafe\u0301"


def test_the_stage_is_part_of_a_run(tmp_path: Path) -> None:
    prose = "and the people who sit in it have read this page with care, since it is about the form of a letter. "
    sections = write_sources(tmp_path, {"accent.txt": f"{DECOMPOSED} {prose}"})
    home = tmp_path / "home"
    usual = prepared(sections, home)
    assert [stage.label for stage in usual.stages][:3] == ["ingest", "normalize", "filter"]
    assert COMPOSED in texts_to_pack(home, usual)
    other = prepared(sections, home, ["normalize.form=NFD"])
    assert [(stage.label, stage.status) for stage in other.stages][:2] == [("ingest", "cached"), ("normalize", "built")]
    assert COMPOSED not in texts_to_pack(home, other) and DECOMPOSED in texts_to_pack(home, other)
