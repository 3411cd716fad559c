"""The files of deploy/ against what they are about: flags, routes, metrics; and against their own schemas, where these are."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from typer.main import get_command

from mmrec.cli import app as cli
from tests.serving.served import Serve

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
KUBERNETES = "1.34"
SCRAPED = {"instance", "job", "namespace", "pod", "le"}
"""Labels that a scrape adds, and that of buckets."""
Tree = dict[str, object]


def documents(path: Path) -> list[Tree]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def manifests() -> list[Tree]:
    files = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
    return [entry for path in files for entry in documents(path)]


def manifest(kind: str) -> Tree:
    (found,) = [entry for entry in manifests() if entry["kind"] == kind]
    return found


def at(tree: object, *steps: str | int) -> object:
    for step in steps:
        tree = tree[step]  # type: ignore[index]
    return tree


def container() -> Tree:
    return dict(at(manifest("Deployment"), "spec", "template", "spec", "containers", 0))  # type: ignore[call-overload]


def expressions() -> dict[str, str]:
    """Every PromQL expression, by where it is."""
    rules = at(documents(DEPLOY / "prometheus" / "alerts.yaml")[0], "groups", 0, "rules")
    found = {f"alert {rule['alert']}": rule["expr"] for rule in rules}  # type: ignore[attr-defined]
    board = json.loads((DEPLOY / "grafana" / "mmrec.json").read_text())
    for panel in board["panels"]:
        for target in panel["targets"]:
            found[f"panel {panel['title']} {target['refId']}"] = target["expr"]
    for entry in board["annotations"]["list"]:
        found[f"annotation {entry['name']}"] = entry["expr"]
    return found


def test_every_flag_of_a_command_is_there() -> None:
    serve = get_command(cli).commands["serve"]  # type: ignore[attr-defined]
    flags = {option for parameter in serve.params for option in parameter.opts}
    compose = documents(DEPLOY / "compose.yaml")[0]
    for arguments in (at(compose, "services", "mmrec", "command"), container()["args"]):
        words = list(arguments)  # type: ignore[call-overload]
        assert words[0] == "serve"
        assert not words[1].startswith("-"), "the run"
        for word in words[2:]:
            assert word.split("=")[0] in flags, word


def test_probes_and_scrapes_ask_what_is_there(serve: Serve) -> None:
    client = serve().client
    box = container()
    ports = {port["name"]: port["containerPort"] for port in box["ports"]}  # type: ignore[attr-defined]
    assert f"--port={ports['http']}" in box["args"]  # type: ignore[operator]
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = at(box, name, "httpGet")
        assert client.get(str(at(asked, "path"))).status_code == 200
        assert at(asked, "port") == "http"
    assert at(manifest("Service"), "spec", "ports", 0, "targetPort") == "http"
    for name in ("prometheus.yaml", "kubernetes.yaml"):
        scrape = at(documents(DEPLOY / "prometheus" / name)[0], "scrape_configs", 0)
        assert client.get(str(at(scrape, "metrics_path"))).status_code == 200
        assert f'up{{job="{at(scrape, "job_name")}"}}' in expressions()["alert MmrecDown"]
    text = (DEPLOY / "Containerfile").read_text()
    (asked_path,) = re.findall(r"http://127\.0\.0\.1:8000(/[a-z/]+)", text)
    assert client.get(asked_path).status_code == 200
    assert "EXPOSE 8000" in text


def test_every_metric_and_label_of_a_rule_or_panel_is_on_metrics(serve: Serve, models_folder: Path) -> None:
    server = serve(models=models_folder)
    server.post("score", {"user_id": "u01", "candidates": ["p01", {"caption": "red"}]})
    there: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(server.client.get("/metrics").text):
        for sample in family.samples:
            there.setdefault(sample.name, set()).update(sample.labels)
    asked = expressions()
    assert len(asked) > 20
    for where, expression in asked.items():
        names = set(re.findall(r"\bmmrec_\w+", expression))
        assert names or "up{" in expression, where
        assert names <= set(there), where
        labels = {label for name in names for label in there[name]} | SCRAPED
        matched = re.findall(r"[{,]\s*(\w+)\s*(?:=~|!~|!=|=)", expression)
        grouped = [name.strip() for group in re.findall(r"\bby \(([^)]*)\)", expression) for name in group.split(",")]
        assert {*matched, *grouped} <= labels, where
    adapter = at(documents(DEPLOY / "prometheus" / "adapter.yaml")[0], "rules", "custom", 0)
    scaled = at(manifest("HorizontalPodAutoscaler"), "spec", "metrics", 0, "pods", "metric", "name")
    assert scaled == at(adapter, "name", "as") == "mmrec_queue_depth"
    assert scaled in there


def test_scrapes_find_the_pods_and_label_them_for_the_adapter() -> None:
    rules: list[Tree] = at(
        documents(DEPLOY / "prometheus" / "kubernetes.yaml")[0], "scrape_configs", 0, "relabel_configs"
    )  # type: ignore[assignment]
    kept = {rule["source_labels"][0]: rule["regex"] for rule in rules if rule.get("action") == "keep"}  # type: ignore[index]
    labels = at(manifest("Deployment"), "spec", "template", "metadata", "labels")
    assert kept["__meta_kubernetes_pod_label_app_kubernetes_io_name"] == at(labels, "app.kubernetes.io/name")
    assert kept["__meta_kubernetes_pod_container_port_name"] in {port["name"] for port in container()["ports"]}  # type: ignore[attr-defined]
    adapter = at(documents(DEPLOY / "prometheus" / "adapter.yaml")[0], "rules", "custom", 0)
    needed = set(re.findall(r'(\w+)!=""', str(at(adapter, "seriesQuery"))))
    assert needed == {rule["target_label"] for rule in rules if "target_label" in rule}


def test_expressions_are_promql() -> None:
    parser = pytest.importorskip("promql_parser", reason="promql-parser is not installed")
    for where, expression in expressions().items():
        for name, value in {"$__rate_interval": "5m", "$instance": "a", "$route": "b"}.items():
            expression = expression.replace(name, value)
        assert parser.parse(expression), where


def test_manifests_are_what_kubernetes_expects() -> None:
    kubernetes = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    kinds = [entry for entry in manifests() if entry["kind"] != "Kustomization"]
    assert len(kinds) == 8
    for entry in kinds:
        kubernetes.validate(entry, KUBERNETES, strict=True)


def test_manifests_fit_together() -> None:
    (kustomization,) = [entry for entry in manifests() if entry["kind"] == "Kustomization"]
    files = {path.name for path in (DEPLOY / "kubernetes").glob("*.yaml")}
    assert set(kustomization["resources"]) == files - {"kustomization.yaml", "secret.example.yaml"}  # type: ignore[call-overload]
    labels = {"app.kubernetes.io/name": "mmrec"}
    for entry in manifests():
        if entry["kind"] != "Kustomization":
            assert at(entry, "metadata", "labels") == labels
    deployment = manifest("Deployment")
    assert at(deployment, "spec", "template", "metadata", "labels") == labels
    for selector in (
        at(deployment, "spec", "selector", "matchLabels"),
        at(manifest("Service"), "spec", "selector"),
        at(manifest("PodDisruptionBudget"), "spec", "selector", "matchLabels"),
        at(manifest("NetworkPolicy"), "spec", "podSelector", "matchLabels"),
    ):
        assert selector == labels
    pod, box = at(deployment, "spec", "template", "spec"), container()
    names = set(at(manifest("ConfigMap"), "data"))  # type: ignore[call-overload]
    assert set(re.findall(r"\$\((\w+)\)", " ".join(box["args"]))) <= names  # type: ignore[call-overload]
    secret = manifest("Secret")
    assert at(box, "env", 0, "valueFrom", "secretKeyRef", "key") in secret["stringData"]  # type: ignore[operator]
    volumes = {volume["name"]: volume for volume in at(pod, "volumes")}  # type: ignore[attr-defined]
    assert {mount["name"] for mount in box["volumeMounts"]} == set(volumes)  # type: ignore[attr-defined]
    claim = at(volumes["models"], "persistentVolumeClaim", "claimName")
    assert claim == at(manifest("PersistentVolumeClaim"), "metadata", "name")
    assert at(volumes["keys"], "secret", "items", 0, "key") in secret["stringData"]  # type: ignore[operator]


def test_the_container_runs_as_nobody_and_writes_nowhere() -> None:
    pod, box = at(manifest("Deployment"), "spec", "template", "spec"), container()
    assert at(pod, "securityContext", "runAsNonRoot") is True
    assert at(pod, "automountServiceAccountToken") is False
    assert box["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    service = at(documents(DEPLOY / "compose.yaml")[0], "services", "mmrec")
    assert at(service, "read_only") is True
    assert at(service, "cap_drop") == ["ALL"]
    lines = (DEPLOY / "Containerfile").read_text().splitlines()
    user = str(at(pod, "securityContext", "runAsUser"))
    assert f"USER {user}" in lines
    assert any(line.startswith("HEALTHCHECK") for line in lines)
    stages = [line for line in lines if line.startswith("FROM")]
    assert len(stages) == 2, "what builds does not run"


def test_the_container_file_has_no_known_fault() -> None:
    beside = Path(sys.executable).parent
    program = shutil.which("hadolint", path=f"{beside}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("hadolint is not installed")
    command = [program, "--no-color", str(DEPLOY / "Containerfile")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_container_installs_extras_that_there_are() -> None:
    (asked,) = re.findall(r"^ARG EXTRAS=(\S+)$", (DEPLOY / "Containerfile").read_text(), re.MULTILINE)
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]
    assert set(asked.split(",")) <= set(project["optional-dependencies"])


def test_compose_names_what_it_defines() -> None:
    compose = documents(DEPLOY / "compose.yaml")[0]
    services = compose["services"]
    assert (DEPLOY / str(at(services, "mmrec", "build", "context")) / "pyproject.toml").is_file()
    root = DEPLOY / str(at(services, "mmrec", "build", "context"))
    assert (root / str(at(services, "mmrec", "build", "dockerfile"))).is_file()
    assert set(at(services, "mmrec", "secrets")) <= set(compose["secrets"])  # type: ignore[call-overload]
    assert set(at(services, "mmrec", "depends_on")) <= set(services)  # type: ignore[call-overload]
    assert "--keys=/run/secrets/keys" in at(services, "mmrec", "command")  # type: ignore[operator]
    words = " ".join(at(services, "mmrec", "command"))  # type: ignore[arg-type]
    assert "@postgres:" in words, "the name of the other service"
