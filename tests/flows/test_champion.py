"""Which model answers: by form, run and role, also where the champion is older than a form, or there is none."""

from pathlib import Path

import pytest

from flows.champion import Champion, model_folder
from tasks.mechanism.runs import RunRecord, StageRecord, save_run
from tasks.mechanism.store import Store

FORMS = {"base": "pretrain", "small": "small", "tiny": "tiny"}
ROLES = {"start": "base", "candidate": "base", "served": "small"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def publish(store: Store, text: str) -> str:
    """An artifact with this text; its digest."""
    folder = store.scratch("model", text) / "out"
    folder.mkdir()
    (folder / "weights.txt").write_text(text)
    return store.publish(folder).digest


def record_run(store: Store, run_id: str, started: str, *labels: str, status: str = "completed") -> dict[str, str]:
    """A run that came as far as these stage calls; their digests."""
    digests = {label: publish(store, f"{run_id} {label}") for label in labels}
    stages = [
        StageRecord(label=label, stage=label, key="k", digest=digest, status="built", seconds=1.0, note="")
        for label, digest in digests.items()
    ]
    record = RunRecord.model_validate(
        {"run_id": run_id, "recipe": {"name": "toy"}, "command": "", "home": "", "status": status, "started": started}
        | {"forms": FORMS, "roles": ROLES, "stages": stages}
    )
    save_run(store, record)
    return digests


def crown(store: Store, run_id: str, models: dict[str, str]) -> None:
    champion = Champion(
        run_id=run_id, promoted="", models=models, roles=ROLES, evaluation="", predecessor_evaluation=""
    )
    path = store.home / "champions" / "toy.json"
    path.parent.mkdir()
    path.write_text(champion.model_dump_json())


def test_a_role_names_the_form_of_a_run(store: Store) -> None:
    digests = record_run(store, "toy-1", "2026-01-01", "pretrain", "small")
    assert model_folder(store, "", "toy-1", "served").name == digests["small"]
    assert model_folder(store, "", "toy-1", "candidate").name == digests["pretrain"]
    assert model_folder(store, "base", "toy-1", "served").name == digests["pretrain"]


def test_the_champion_answers_though_later_runs_are_on_their_way(store: Store) -> None:
    digests = record_run(store, "toy-1", "2026-01-01", "pretrain", "small")
    record_run(store, "toy-2", "2026-01-02", "pretrain", status="running")
    crown(store, "toy-1", {"base": digests["pretrain"], "small": digests["small"]})
    assert model_folder(store, "", "", "served").name == digests["small"]


def test_without_a_champion_the_latest_run_that_made_the_form_answers(store: Store) -> None:
    digests = record_run(store, "toy-1", "2026-01-01", "pretrain", "small", status="failed")
    prepared = record_run(store, "toy-2", "2026-01-02", "pretrain", status="running")
    assert model_folder(store, "", "", "served").name == digests["small"]
    assert model_folder(store, "base", "", "served").name == prepared["pretrain"]


def test_a_champion_from_before_a_form_existed_says_what_it_has(store: Store) -> None:
    digests = record_run(store, "toy-1", "2026-01-01", "pretrain", "small", "tiny")
    crown(store, "toy-1", {"base": digests["pretrain"], "small": digests["small"]})
    with pytest.raises(ValueError, match=r"The champion, toy-1, has no model 'tiny'\. It has base, small"):
        model_folder(store, "tiny", "", "served")
    assert model_folder(store, "tiny", "toy-1", "served").name == digests["tiny"]


def test_an_unknown_form_a_stage_that_was_not_reached_and_a_lost_artifact_are_named(store: Store) -> None:
    digests = record_run(store, "toy-1", "2026-01-01", "pretrain", status="failed")
    with pytest.raises(ValueError, match=r"The run toy-1 has no model 'int9'\. It has base, small, tiny"):
        model_folder(store, "int9", "", "served")
    with pytest.raises(ValueError, match=r"toy-1 \(failed\) did not come as far as small"):
        model_folder(store, "", "toy-1", "served")
    store.discard(digests["pretrain"])
    with pytest.raises(ValueError, match=r"pretrain of toy-1: .*Run the recipe again"):
        model_folder(store, "base", "toy-1", "served")


def test_a_folder_is_taken_as_it_is(store: Store, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert model_folder(store, str(tmp_path), "", "served") == tmp_path
