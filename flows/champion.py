"""Which model of a recipe is the champion, and which one it replaced: the one state that a run reads and writes.

A run may start from it. Which artifacts that means is settled before the first stage, so they are inputs like others.
"""

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from flows.graph import Incumbent, Products, Start
from flows.recipe import Recipe
from tasks.mechanism.runs import RunRecord
from tasks.mechanism.store import Artifact, Manifest, Store, StoreDamage, now_utc, write_atomically
from tasks.track.protocol import Role


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


def find_start(store: Store, recipe: Recipe) -> Start | None:
    """What pretraining of this recipe goes on from; None: random weights.

    A run on the very tokens that the champion went on to learn starts from what the champion started from: so a
    repeated run asks the same question as the first and is served from the store.

    Raises:
        ValueError: the champion's model or tokenizer is gone, or the recipe asks for another vocabulary.
    """
    champion = find_champion(store, recipe.name) if recipe.start == "champion" else None
    if champion is None:
        return None
    base = _manifest_of(store, "pretrain", champion.models["base"], champion)
    vocabulary = _manifest_of(store, "tokenizer", base.inputs["tokenizer"], champion).config["vocab_size"]
    if vocabulary != recipe.tokenizer.vocab_size:
        raise ValueError(
            f"tokenizer.vocab_size is {recipe.tokenizer.vocab_size}, but the champion, {champion.run_id}, has a "
            f"vocabulary of {vocabulary} and keeps it when it is trained on. Set tokenizer.vocab_size to {vocabulary}, "
            "or start to scratch."
        )

    def model(tokens: Artifact) -> Artifact:
        config = recipe.pretrain.model_dump(mode="json")
        is_repeat = base.inputs["tokens"] == tokens.digest and base.config == config
        return _open(store, base.inputs.get("start", base.digest) if is_repeat else base.digest, champion)

    return Start(_open(store, base.inputs["tokenizer"], champion), model)


def describe_start(store: Store, recipe: Recipe) -> str:
    """What pretraining starts from, for a plan."""
    if recipe.start == "scratch":
        return "random weights"
    champion = find_champion(store, recipe.name)
    if champion is None:
        return "random weights, since there is no champion yet"
    return f"the champion, {champion.run_id} (base model {champion.models['base'][:12]}), with its tokenizer"


def _manifest_of(store: Store, stage: str, digest: str, champion: Champion) -> Manifest:
    """How the champion's artifact was made; of several ways to the same bytes the latest."""
    found = [manifest for manifest in store.manifests() if (manifest.stage, manifest.digest) == (stage, digest)]
    if not found:
        raise ValueError(_gone(champion, f"nothing in {store.keys / stage} tells how {digest[:12]} was made"))
    return found[-1]


def _open(store: Store, digest: str, champion: Champion) -> Artifact:
    try:
        return store.open(digest)
    except StoreDamage as damage:
        raise ValueError(_gone(champion, str(damage))) from damage


def _gone(champion: Champion, why: str) -> str:
    return (
        f"The champion, {champion.run_id}, cannot be trained on: {why}. Set start to scratch, or restore the home "
        "folder."
    )


def promote(store: Store, recipe_name: str, products: Products, record: RunRecord) -> Champion | None:
    """Make the run's models the champion if its verdict says so and they are not already; returns the new champion."""
    verdict = json.loads((products.verdict.path / "verdict.json").read_bytes())
    current = find_champion(store, recipe_name)
    evaluation = products.evaluations["dpo"].digest
    if not verdict["promote"] or (current and current.evaluation == evaluation):
        return None
    models = {name: model.digest for name, model in products.models.items()}
    return crown(store, recipe_name, record.run_id, models, evaluation, current)


def crown(
    store: Store, recipe_name: str, run_id: str, models: dict[str, str], evaluation: str, current: Champion | None
) -> Champion:
    """Write down that the models of this run, by their digests, are the champion after `current`."""
    champion = Champion(
        run_id=run_id,
        promoted=now_utc(),
        models=models,
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
