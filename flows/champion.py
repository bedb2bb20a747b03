"""Which models of a recipe are the champion, and whom they replaced: the one state that a run reads and writes.

A run may start from it. Which artifacts that means is settled before the first stage, so they are inputs like others.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from flows.graph import Incumbent, Products, Start
from flows.recipe import Recipe
from tasks.evaluation.evaluate import evaluation_label
from tasks.mechanism.execution import Execution
from tasks.mechanism.runs import RunRecord, artifact_of, find_run, list_runs
from tasks.mechanism.stage import was_made_with
from tasks.mechanism.store import Artifact, Manifest, Store, StoreDamage, now_utc, write_atomically
from tasks.track import assign_role
from tasks.track.protocol import Role

CHAMPION = "champion"


class Champion(BaseModel):
    """The model that a recipe's users are served, at `champions/<recipe>.json`.

    models: digests by form, of the forms that there were when it was crowned
    roles: as the run's record has them
    evaluation: digest of the candidate's evaluation, and of the one that it was promoted over
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_id: str
    promoted: str
    models: dict[str, str]
    roles: dict[str, str]
    evaluation: str
    predecessor_evaluation: str

    def in_role(self, role: str) -> str:
        """The digest of the form that has this role."""
        return self.models[self.roles[role]]


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
    base = _manifest_of(store, "pretrain", champion.in_role("start"), champion)
    vocabulary = _manifest_of(store, "tokenizer", base.inputs["tokenizer"], champion).config["vocab_size"]
    if vocabulary != recipe.tokenizer.vocab_size:
        raise ValueError(
            f"tokenizer.vocab_size is {recipe.tokenizer.vocab_size}, but the champion, {champion.run_id}, has a "
            f"vocabulary of {vocabulary} and keeps it when it is trained on. Set tokenizer.vocab_size to {vocabulary}, "
            "or start to scratch."
        )

    def model(tokens: Artifact) -> Artifact:
        is_repeat = base.inputs["tokens"] == tokens.digest and was_made_with(base, recipe.pretrain)
        return _open(store, base.inputs.get("start", base.digest) if is_repeat else base.digest, champion)

    return Start(_open(store, base.inputs["tokenizer"], champion), model)


def describe_start(store: Store, recipe: Recipe) -> str:
    """What pretraining starts from, for a plan."""
    if recipe.start == "scratch":
        return "random weights"
    champion = find_champion(store, recipe.name)
    if champion is None:
        return "random weights, since there is no champion yet"
    return f"the champion, {champion.run_id} (base model {champion.in_role('start')[:12]}), with its tokenizer"


def _manifest_of(store: Store, stage: str, digest: str, champion: Champion) -> Manifest:
    """How the champion's artifact was made; of several ways to the same bytes the latest."""
    found = [manifest for manifest in store.manifests() if (manifest.stage, manifest.digest) == (stage, digest)]
    if not found:
        raise ValueError(_gone(champion, f"nothing in {store.keys / stage} tells how {digest[:12]} was made"))
    return found[-1]  # manifests come oldest first


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
    evaluation = products.candidate_evaluation.digest
    if not verdict["promote"] or (current and current.evaluation == evaluation):
        return None
    models = {name: model.digest for name, model in products.models.items()}
    return _crown(store, record, models, evaluation, current)


def promote_run(record: RunRecord, execution: Execution) -> Champion:
    """Make a run's models the champion because a person says so; MLflow's alias follows where the run was tracked.

    Raises:
        ValueError: the run did not come that far, a model of it is gone, or it already is the champion.
    """
    store, name = Store(execution.home), str(record.recipe["name"])
    models = {form: artifact_of(store, record.run_id, label).digest for form, label in record.forms.items()}
    evaluation = artifact_of(store, record.run_id, evaluation_label(record.roles["candidate"])).digest
    current = find_champion(store, name)
    if current and current.evaluation == evaluation:
        raise ValueError(f"The models of {record.run_id} are the champion of {name} already.")
    champion = _crown(store, record, models, evaluation, current)
    if record.tracking_run_id:  # else MLflow knows no version of it
        assign_role(execution, name, champion.in_role("candidate"), "champion")
    return champion


def _crown(
    store: Store, record: RunRecord, models: dict[str, str], evaluation: str, current: Champion | None
) -> Champion:
    champion = Champion(
        run_id=record.run_id,
        promoted=now_utc(),
        models=models,
        roles=record.roles,
        evaluation=evaluation,  # tells a champion by bytes: another run that gave the same is the champion too
        predecessor_evaluation=current.evaluation if current else "",
    )
    write_atomically(_champion_path(store, str(record.recipe["name"])), champion.model_dump_json(indent=1).encode())
    return champion


def role_of(store: Store, recipe_name: str, products: Products) -> Role:
    """Whether the run's model is now the one that users are served, or a challenger that was not better."""
    champion = find_champion(store, recipe_name)
    is_champion = champion is not None and champion.evaluation == products.candidate_evaluation.digest
    return "champion" if is_champion else "challenger"


def model_folder(store: Store, model: str, run: str, role: str) -> Path:
    """The folder of a model: a path, or a form of the run, by default the one with this role.

    Without a run it is that of the champion of the latest run's recipe, or, where there is none yet, of the latest run
    that came as far.

    Raises:
        ValueError: no such form, run or folder; says which forms there are.
    """
    if model and (Path(model) / "config.json").is_file():  # not is_dir: a folder may bear the name of a form
        return Path(model)
    record = find_run(store, run)
    champion = None if run else find_champion(store, str(record.recipe["name"]))
    if champion is None:
        record = record if run else _latest_with(store, model, role) or record
        form = model or record.roles[role]
        _check_form(form, record.forms, f"The run {record.run_id}")
        return artifact_of(store, record.run_id, record.forms[form]).path
    form = model or champion.roles[role]
    _check_form(form, champion.models, f"The champion, {champion.run_id},")
    try:
        return store.open(champion.models[form]).path
    except StoreDamage as damage:
        raise ValueError(
            f"The champion's {form} model cannot be loaded: {damage}. Run the recipe again to rebuild it."
        ) from damage


def _latest_with(store: Store, model: str, role: str) -> RunRecord | None:
    """The latest run that has made the form: a run that only prepares, or is on its way, has not."""
    for record in reversed(list_runs(store)):
        label = record.forms.get(model or record.roles.get(role, ""), "")
        if record.stage(label):
            return record
    return None


def _check_form(form: str, known: Mapping[str, str], owner: str) -> None:
    if form not in known:
        raise ValueError(f"{owner} has no model {form!r}. It has {', '.join(known)}; or name a model folder.")


def find_pair(store: Store, before: str, after: str) -> tuple[RunRecord, RunRecord]:
    """Two runs by id or beginning; `champion` is the one whose model serves the recipe of the other.

    Beside the champion itself it is the one that this replaced, as it was for the gate.

    Raises:
        ValueError: one of them does not exist, or both names mean the same run.
    """
    if before == after == CHAMPION:
        raise ValueError("The champion cannot be compared with itself. Name a run beside it.")
    if before == CHAMPION:
        second = find_run(store, after)
        first = _champion_run(store, second)
    else:
        first = find_run(store, before)
        second = _champion_run(store, first) if after == CHAMPION else find_run(store, after)
    if first.run_id == second.run_id:
        raise ValueError(f"Both names mean the run {first.run_id}. Name another run to compare it with.")
    return first, second


def _champion_run(store: Store, other: RunRecord) -> RunRecord:
    name = str(other.recipe["name"])
    champion = find_champion(store, name)
    if champion is None:
        raise ValueError(f"The recipe {name!r} has no champion in {store.home} yet. Name a run instead.")
    return find_run(store, champion.run_id) if champion.run_id != other.run_id else _predecessor(store, champion)


def _predecessor(store: Store, champion: Champion) -> RunRecord:
    """The run that first gave the evaluation of the champion's predecessor."""
    if not champion.predecessor_evaluation:
        raise ValueError(
            f"The run {champion.run_id} is the champion, the first that its recipe had. Name a run to compare with."
        )
    for record in list_runs(store):
        stage = record.stage(evaluation_label(record.roles.get("candidate", "")))
        if stage and stage.digest == champion.predecessor_evaluation:
            return record
    raise ValueError(
        f"The run {champion.run_id} is the champion, and the run that it replaced has been collected. Name another one."
    )
