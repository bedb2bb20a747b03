"""Versions of one registered model per recipe: found by digest, never copied twice, named by aliases."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import mlflow.pyfunc
from mlflow.entities import LoggedModel
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array, Object, Property

from model.decoding.sampling import CONVERSATION
from tasks.mechanism.runs import RunRecord
from tasks.mechanism.stage import Outcome
from tasks.track.connection import Connection
from tasks.track.delivery import ROOT, experiment_id, parameters
from tasks.track.protocol import Role

EXAMPLE = [{"messages": [{"role": "user", "content": "What does os.path.join do?"}]}]
_MESSAGE = Object([Property("role", DataType.string), Property("content", DataType.string)])
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(Array(_MESSAGE), "messages")]),
    outputs=Schema([ColSpec(DataType.string)]),
    params=ParamSchema(
        [
            ParamSpec("temperature", DataType.double, CONVERSATION.temperature),
            ParamSpec("min_p", DataType.double, CONVERSATION.min_p),
            ParamSpec("repetition_penalty", DataType.double, CONVERSATION.repetition_penalty),
            ParamSpec("seed", DataType.long, CONVERSATION.seed),
            ParamSpec("max_tokens", DataType.long, 200),
        ]
    ),
)


def register_models(
    connection: Connection, record: RunRecord, outcomes: Sequence[Outcome], nested: Mapping[str, str]
) -> None:
    """See that each model among `outcomes` has a version and that its form's alias points there."""
    models = [(form, outcome) for form, label in record.forms.items() for outcome in outcomes if outcome.label == label]
    if not models:
        return
    name = str(record.recipe["name"])
    aliases = _aliases(connection, name)
    for form, outcome in models:
        version = find_version(connection, name, outcome.artifact.digest)
        if version is None:
            source_run = nested.get(outcome.label, record.tracking_run_id)
            version = _create_version(connection, record, form, outcome, source_run)
        if aliases.get(form) != str(version.version):  # a run that was served whole sets nothing
            connection.client.set_registered_model_alias(name, form, str(version.version))


def set_role(connection: Connection, recipe_name: str, digest: str, role: Role) -> None:
    """Point `champion` or `challenger` at the version with this digest; a champion is its own challenger no more."""
    version = find_version(connection, recipe_name, digest)
    if version is None:
        return
    aliases = _aliases(connection, recipe_name)
    if aliases.get(role) != str(version.version):
        connection.client.set_registered_model_alias(recipe_name, role, str(version.version))
    if role == "champion" and aliases.get("challenger") == str(version.version):
        connection.client.delete_registered_model_alias(recipe_name, "challenger")


def find_version(connection: Connection, recipe_name: str, digest: str) -> ModelVersion | None:
    """The latest version that holds these bytes."""
    found = connection.client.search_model_versions(f"name = '{recipe_name}' AND tags.digest = '{digest}'")
    return max(found, key=lambda version: int(version.version), default=None)


def _aliases(connection: Connection, name: str) -> dict[str, str]:
    """Alias -> version of the registered model, which is made where it is missing."""
    client = connection.client
    try:
        model = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        description = f"Models of the recipe {name}. Aliases name the latest of each form, and the champion."
        model = client.create_registered_model(name, description=description)
    return {alias: str(version) for alias, version in model.aliases.items()}


def _create_version(
    connection: Connection, record: RunRecord, form: str, outcome: Outcome, source_run: str
) -> ModelVersion:
    client, name = connection.client, str(record.recipe["name"])
    tags = lineage(record, form, outcome)
    logged = client.create_logged_model(
        experiment_id(connection, name),
        name=form,
        source_run_id=source_run,
        tags=tags,
        params=parameters(outcome.manifest.config),
        model_type="chat",
    )
    with tempfile.TemporaryDirectory(dir=_scratch(outcome)) as folder:
        _save(logged, outcome, Path(folder) / "model")
        client.log_model_artifacts(logged.model_id, f"{folder}/model")
    client.finalize_logged_model(logged.model_id, "READY")
    return client.create_model_version(
        name,
        source=logged.artifact_location,
        run_id=source_run,
        tags=tags,
        description=describe(record, form, outcome),
        model_id=logged.model_id,
    )


def _scratch(outcome: Outcome) -> Path:
    """A folder on the artifact's own disk: models are large and /tmp is often small."""
    folder = outcome.artifact.path.parent.parent / "scratch"
    folder.mkdir(exist_ok=True)
    return folder


def _save(logged: LoggedModel, outcome: Outcome, folder: Path) -> None:
    """Write the MLflow model: code as text (models-from-code), weights as safetensors, nothing pickled."""
    code = Path(__file__).with_name("served_chat.py")
    # Not log_model, which loads the model and has it answer the example.
    mlflow.pyfunc.save_model(
        path=str(folder),
        python_model=str(code),
        artifacts={"model": str(outcome.artifact.path)},
        code_paths=[str(ROOT / "tasks"), str(ROOT / "model")],  # not flows: who serves a model runs no pipeline
        mlflow_model=Model(model_uuid=logged.model_id, run_id=logged.source_run_id, model_id=logged.model_id),
        signature=SIGNATURE,  # in full: MLflow would infer it from an answer
        input_example=EXAMPLE,
        pip_requirements=_requirements(),  # inferring them took 6.6 s; so the whole takes 1 to 2
    )


def _requirements() -> list[str]:
    """What answering a chat needs, at the versions that built the model."""
    from importlib.metadata import version

    needed = ("mlflow", "torch", "numpy", "numba", "safetensors", "tokenizers", "tiktoken", "jinja2", "pydantic")
    return [f"{package}=={version(package).partition('+')[0]}" for package in needed]  # no index has 2.13.0+cpu


def lineage(record: RunRecord, form: str, outcome: Outcome) -> dict[str, str]:
    """Where a model came from, as tags that can be searched."""
    manifest = outcome.manifest
    tags = {
        "form": form,
        "recipe": str(record.recipe["name"]),
        "corpus": str(record.recipe.get("corpus", "")),
        "digest": manifest.digest,
        "key": manifest.key,
        "stage": manifest.stage,
        "code_digest": manifest.code_digest,
        "bessemer.run_id": record.run_id,
    }
    tags |= {f"input.{name}": digest for name, digest in manifest.inputs.items()}
    tags |= {f"source.{name}": digest for name, digest in record.sources.items()}
    return {name: value for name, value in tags.items() if value}


def describe(record: RunRecord, form: str, outcome: Outcome) -> str:
    """A version's description: what it is, its figures, how to build it again."""
    manifest = outcome.manifest
    figures = "\n".join(f"| {name} | {value:.6g} |" for name, value in sorted(manifest.metrics.items()))
    return (
        f"**{form}** of recipe `{record.recipe['name']}`, built by stage `{manifest.stage}` in "
        f"{manifest.seconds:.0f} s ({manifest.size_bytes / 1e6:.1f} MB).\n\n"
        f"| figure | value |\n|---|---|\n{figures}\n\n"
        f"Built by run `{record.run_id}`: `{record.command}`\n"
    )
