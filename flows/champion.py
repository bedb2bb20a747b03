"""Which model of a recipe is the champion, and which one it replaced: the one state that a run reads and writes."""

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from flows.graph import Incumbent, Products
from tasks.runs import RunRecord
from tasks.store import Artifact, Store, StoreDamage, now_utc, write_atomically
from tasks.track import Role


class Champion(BaseModel):
    """The model that a recipe's users are served, at `champions/<recipe>.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_id: str
    promoted: str
    models: dict[str, str]
    evaluation: str
    predecessor_evaluation: str


def _champion_path(store: Store, recipe_name: str) -> Path:
    return store.home / "champions" / f"{recipe_name}.json"


def find_champion(store: Store, recipe_name: str) -> Champion | None:
    """The champion of this recipe, if one was ever promoted."""
    path = _champion_path(store, recipe_name)
    return Champion.model_validate_json(path.read_bytes()) if path.exists() else None


def incumbent_of(store: Store, recipe_name: str) -> Incumbent:
    """How the gate finds whom to compare with.

    A candidate that already is the champion meets the one it once replaced, not itself: so a repeated run asks the
    same question as the first and is served from the store.
    """

    def incumbent(candidate: Artifact) -> dict[str, Artifact]:
        champion = find_champion(store, recipe_name)
        if champion is None:
            return {}
        is_champion = champion.evaluation == candidate.digest
        digest = champion.predecessor_evaluation if is_champion else champion.evaluation
        try:
            return {"incumbent": store.open(digest)} if digest else {}
        except StoreDamage:
            return {}

    return incumbent


def promote(store: Store, recipe_name: str, products: Products, record: RunRecord) -> Champion | None:
    """Make the run's models the champion if its verdict says so and they are not already; returns the new champion."""
    verdict = json.loads((products.verdict.path / "verdict.json").read_bytes())
    current = find_champion(store, recipe_name)
    evaluation = products.evaluations["dpo"].digest
    if not verdict["promote"] or (current and current.evaluation == evaluation):
        return None
    champion = Champion(
        run_id=record.run_id,
        promoted=now_utc(),
        models={name: model.digest for name, model in products.models.items()},
        evaluation=evaluation,
        predecessor_evaluation=current.evaluation if current else "",
    )
    write_atomically(_champion_path(store, recipe_name), champion.model_dump_json(indent=1).encode())
    return champion


def role_of(store: Store, recipe_name: str, products: Products) -> Role:
    """Whether the run's model is now the one that users are served, or a challenger that was not better."""
    champion = find_champion(store, recipe_name)
    is_champion = champion is not None and champion.evaluation == products.evaluations["dpo"].digest
    return "champion" if is_champion else "challenger"
