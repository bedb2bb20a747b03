"""Make the models of a run the champion because a person says so, whatever the gate said."""

from flows.champion import Champion, crown, find_champion
from flows.show.summary import MODEL_LABELS
from tasks.mechanism.execution import Execution
from tasks.mechanism.runs import RunRecord, artifact_of
from tasks.mechanism.store import Store
from tasks.track import assign_role


def promote_run(record: RunRecord, execution: Execution) -> Champion:
    """Write the champion down, then have MLflow's alias follow where the run was tracked.

    Raises:
        ValueError: the run did not come that far, a model of it is gone, or it already is the champion.
    """
    store, name = Store(execution.home), str(record.recipe["name"])
    models = {model: artifact_of(store, record.run_id, label).digest for model, label in MODEL_LABELS.items()}
    evaluation = artifact_of(store, record.run_id, "evaluate_dpo").digest
    current = find_champion(store, name)
    if current and current.evaluation == evaluation:
        raise ValueError(f"The models of {record.run_id} are the champion of {name} already.")
    champion = crown(store, name, record.run_id, models, evaluation, current)
    if record.tracking_run_id:
        assign_role(execution, name, models["dpo"], "champion")
    return champion
