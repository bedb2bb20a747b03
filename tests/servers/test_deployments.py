"""What is deployed: prefect.yaml says what the presets say, and other machines' files hold by their own schemas."""

import json
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from flows.recipe import Recipe, load_plan, preset_names
from flows.servers.deployments import WORK_POOL, prefect_yaml, recipe_parameters

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "deployments" / "kubernetes"
KUBERNETES_VERSION = "1.34"


def test_prefect_yaml_is_what_the_presets_say() -> None:
    assert (ROOT / "prefect.yaml").read_text() == prefect_yaml(), "python -m flows.servers.deployments > prefect.yaml"


@pytest.mark.parametrize("name", preset_names())
def test_a_deployment_gives_the_same_recipe_as_its_preset(name: str) -> None:
    deployments = yaml.safe_load(prefect_yaml())["deployments"]
    parameters = next(d for d in deployments if d["name"] == name)["parameters"]
    assert Recipe.model_validate(parameters["recipe"]) == load_plan(name).recipe


@pytest.mark.parametrize(
    ("preset", "settings"),
    [
        *((name, []) for name in preset_names()),
        ("demo", ["dpo.optimizer.kind=muon", "sft.optimizer.weight_decay=0.1", "fp4.method=nearest"]),
        ("demo", ["pretrain.optimizer.momentum=0.95", "pretrain.model.rope_scaling.kind=yarn",
                  "pretrain.model.rope_scaling.factor=4"]),
    ],
)  # fmt: skip
def test_a_form_that_is_sent_as_it_opens_gives_the_same_recipe(preset: str, settings: list[str]) -> None:
    """Stages share the types of their sections, but not the defaults: momentum is 0.9 in pretraining, 0.95 in type."""
    recipe = load_plan(preset, settings).recipe
    parameters = recipe_parameters(recipe)
    schema = Recipe.model_json_schema(mode="validation")
    assert opened(schema, schema["$defs"], parameters) == recipe.model_dump(mode="json")
    assert Recipe.model_validate(parameters) == recipe


def opened(schema: dict[str, Any], definitions: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """What Prefect's form holds: the default of a field that has no value, a section's if all of it has none."""
    found = {}
    for name, field in schema["properties"].items():
        value = values.get(name, field["default"])
        inside = definitions[field["$ref"].rsplit("/", 1)[-1]] if "$ref" in field else {}
        found[name] = opened(inside, definitions, value) if "properties" in inside else value
    return found


def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((KUBERNETES / "bessemer.yaml").read_text()))


@pytest.mark.parametrize("manifest", manifests(), ids=lambda m: f"{m['kind']}-{m['metadata']['name']}")
def test_kubernetes_manifests_hold_by_the_published_schemas(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, KUBERNETES_VERSION, strict=True)


def test_job_template_gives_a_valid_job_from_its_defaults() -> None:
    template = json.loads((KUBERNETES / "job-template.json").read_text())
    fields = template["variables"]["properties"]
    job = filled(template["job_configuration"]["job_manifest"], fields)
    job["spec"]["template"]["spec"]["containers"][0]["env"] = [{"name": "BESSEMER_HOME", "value": "/data"}]
    job["spec"]["template"]["spec"]["containers"][0]["args"] = ["prefect", "flow-run", "execute"]
    kubernetes_validate.validate(job, KUBERNETES_VERSION, strict=True)
    assert job["spec"]["backoffLimit"] == 0, "Prefect retries, not Kubernetes"


def filled(value: Any, fields: dict[str, Any]) -> Any:
    """The template with each `{{ variable }}` at its default; entries without one are left out, as Prefect does."""
    if isinstance(value, dict):
        pairs = {key: filled(inner, fields) for key, inner in value.items()}
        return {key: inner for key, inner in pairs.items() if inner is not None}
    if isinstance(value, list):
        return [filled(inner, fields) for inner in value]
    placeholder = re.fullmatch(r"\{\{ (\w+) \}\}", value) if isinstance(value, str) else None
    if placeholder:
        assert placeholder[1] in fields, f"{placeholder[1]} is not a variable of the template"
        return fields[placeholder[1]].get("default")
    return value.replace("{{ name }}", "run") if isinstance(value, str) else value


def test_compose_publishes_on_loopback_only_and_names_what_exists() -> None:
    compose = yaml.safe_load((ROOT / "deployments" / "compose.yaml").read_text())
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)
    assert compose["services"]["worker"]["command"][-1] == WORK_POOL
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            name = volume.split(":")[0]
            assert name in compose["volumes"] or (ROOT / "deployments" / name).exists()
        for other in service.get("depends_on", {}):
            assert other in compose["services"]
