"""What a team deploys follows the published schemas, and agrees with the rest of the project.

The schemas (gzip, to be small) are those of compose-spec/compose-spec at 170098b, of the RayCluster v1 in
ray-project/kuberay at feeaf72, and of the charts, with their defaults, in PrefectHQ/prefect-helm at 75b0c27 and
community-charts/helm-charts at ae700ff, all on GitHub. They are under the Apache License 2.0, the last under MIT's.
"""

import copy
import gzip
import json
import re
import shlex
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[4]
DEPLOY = ROOT / "cluster" / "services" / "deploy"
FILES = {
    "compose.yaml": "compose-spec",
    "kuberay.yaml": "raycluster-v1",
    "prefect-values.yaml": "prefect-server-values",
    "mlflow-values.yaml": "mlflow-values",
}


def content(name: str) -> dict:
    return yaml.safe_load((DEPLOY / name).read_text())


def closed(schema):
    """The schema with every object closed that lists its fields: the API server would drop what it does not know."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {name: closed(part) for name, part in schema.items()}
    open_ = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and not open_ and schema.get("type") == "object":
        parts["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        parts.pop("type", None)
    return parts


def kept(name: str) -> dict:
    return json.loads(gzip.decompress((Path(__file__).parent / f"{name}.json.gz").read_bytes()))


def merged(base: dict, over: dict) -> dict:
    """A chart's values, as Helm merges them."""
    both = {**base, **over}
    return {
        k: merged(base[k], v) if isinstance(v, dict) and isinstance(base.get(k), dict) else v for k, v in both.items()
    }


def schema(name: str) -> dict:
    found = kept(name)
    if name != "raycluster-v1":
        return found
    found["properties"]["metadata"] = {"type": "object"}
    return closed(found)


def faults(name: str, value: dict) -> list[str]:
    known = schema(FILES[name])
    if name.endswith("-values.yaml"):
        value = merged(kept(FILES[name].replace("-values", "-defaults")), value)
    return [
        error.message
        for error in jsonschema.validators.validator_for(known, jsonschema.Draft202012Validator)(known).iter_errors(
            value
        )
    ]


@pytest.mark.parametrize("name", FILES)
def test_it_follows_its_published_schema(name):
    assert faults(name, content(name)) == []


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("compose.yaml", ("services", "head")),
        ("kuberay.yaml", ("spec", "headGroupSpec", "template", "spec")),
        ("mlflow-values.yaml", ("backendStore", "postgres")),
    ],
)
def test_a_slip_is_found(name, place):
    value = copy.deepcopy(content(name))
    part = value
    for step in place:
        part = part[step]
    part["comand"] = ["ray"]
    assert faults(name, value)


def test_versions_are_those_that_were_tested():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    assert content("kuberay.yaml")["spec"]["rayVersion"] == pins["ray"]
    assert content("mlflow-values.yaml")["image"]["tag"] == pins["mlflow"]
    prefect = content("prefect-values.yaml")["global"]["prefect"]["image"]["prefectTag"]
    assert prefect == f"{pins['prefect']}-python3.11"


def test_the_image_is_made_of_files_that_exist_and_extras_that_are_named():
    text = (DEPLOY / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (.+)$", text, re.M) for word in line.split()[:-1]]
    assert copied and all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r"'\.\[([\w,]+)\]'", text)
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    assert "gpt2" in project["scripts"]


def test_all_variables_of_compose_are_made_by_the_readme_s_commands():
    needed = set(re.findall(r"\$\{(\w+):\?\}", (DEPLOY / "compose.yaml").read_text()))
    readme = (DEPLOY / "README.md").read_text()
    (words,) = re.findall(r"for name in ([A-Z ]+); do echo \"\$\{name\}_PASSWORD", readme)
    (others,) = re.findall(r"for name in ([A-Z_ ]+); do echo \"\$name=", readme)
    assert needed == {f"{word}_PASSWORD" for word in words.split()} | set(others.split())
    for command in re.findall(r"^(?:docker|kubectl|helm) .+$", readme, re.M):
        for word in shlex.split(command):
            if word.startswith("cluster/services/deploy/") and not word.endswith(".env"):
                assert (ROOT / word).exists(), word


def test_every_process_gets_the_same_variables_in_both_places():
    compose = set(content("compose.yaml")["x-gpt2"]["environment"])
    (block,) = re.findall(r"```text\n(.+?)```", (DEPLOY / "README.md").read_text(), re.S)
    secret = {line.partition("=")[0] for line in block.splitlines()}
    assert compose - secret == {"AWS_ENDPOINT_URL"} and secret <= compose
