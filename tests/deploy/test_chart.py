"""The Helm chart, as it was rendered last: against Kubernetes' schemas, the settings, and itself."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from cli.probe import PATHS
from cli.up import environment
from shared.settings import MIB, Settings, _fields
from tests.deploy.charts import (
    CASES,
    CHART,
    KUBERNETES,
    RENDERS,
    Manifest,
    digest,
    helm,
    kept,
    render,
    stored_digest,
    values,
)
from tests.interop.tools import TOOLS

CUSTOM = ("ScaledObject", "ServiceMonitor")
"""Kinds that Kubernetes itself does not know."""
VARIABLES = {name for _, variable in _fields(Settings) for name in variable.names}
SECRETS = {name for own, variable in _fields(Settings) for name in variable.names if not own.repr}


def only(manifests: list[Manifest], kind: str) -> Manifest:
    (found,) = [one for one in manifests if one["kind"] == kind]
    return found


def pod(case: str) -> Manifest:
    spec: Manifest = only(kept(case), "Deployment")["spec"]["template"]["spec"]
    return spec


def container(case: str) -> Manifest:
    (found,) = pod(case)["containers"]
    return dict(found)


def plain(case: str) -> dict[str, str]:
    """The variables with a value of their own."""
    return {one["name"]: one["value"] for one in container(case)["env"] if "value" in one}


def settings(case: str) -> Settings:
    return Settings.from_env(plain(case))


def selected(labels: Mapping[str, str], by: Mapping[str, str]) -> bool:
    return by.items() <= labels.items()


def walk(node: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(node, dict):
        yield node
        for below in node.values():
            yield from walk(below)
    elif isinstance(node, list):
        for below in node:
            yield from walk(below)


def test_the_renders_are_of_this_chart() -> None:
    assert stored_digest() == digest(), "run `python -m tests.deploy.charts`"


@pytest.mark.parametrize("case", CASES)
def test_kubernetes_knows_every_field(case: str) -> None:
    manifests = kept(case)
    for manifest in manifests:
        if manifest["kind"] not in CUSTOM:
            kubernetes_validate.validate(manifest, KUBERNETES.rpartition(".")[0], strict=True)
    names = [(one["kind"], one["metadata"]["name"]) for one in manifests]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("case", CASES)
def test_every_variable_is_a_setting_with_a_good_value(case: str) -> None:
    names = [one["name"] for one in container(case)["env"]]
    assert len(names) == len(set(names))
    assert set(names) <= VARIABLES
    assert not set(plain(case)) & SECRETS, "secrets come from a Secret"
    made = settings(case)
    assert made.pin is (case == "everything")
    assert made.index == 0, "supervisord numbers the processes"


def test_all_secrets_can_come_from_the_secret() -> None:
    for case in ("etcd", "everything"):
        sources = [one["valueFrom"] for one in container(case)["env"] if "valueFrom" in one]
        keys = [source["secretKeyRef"] for source in sources if "secretKeyRef" in source]
        assert {key["key"] for key in keys} == SECRETS
        assert {key["name"] for key in keys} == {"ranking-tokens"}


@pytest.mark.parametrize("case", CASES)
def test_a_pod_may_drain_before_it_is_killed(case: str) -> None:
    made = settings(case)
    stop = int(environment(made, {})["INFERFLOW_STOP_SECONDS"])
    (_, pause) = container(case)["lifecycle"]["preStop"]["exec"]["command"]
    grace = pod(case)["terminationGracePeriodSeconds"]
    assert grace >= int(pause) + stop + math.ceil(made.log.flush_s) + 10


@pytest.mark.parametrize("case", CASES)
def test_memory_is_what_the_settings_can_use(case: str) -> None:
    made = settings(case)
    run_dir = next(volume for volume in pod(case)["volumes"] if volume["name"] == "run")["emptyDir"]
    assert run_dir["medium"] == "Memory"
    parts = [
        256,
        made.workers * (192 + made.matrix_bytes // MIB),
        made.frontdoors * (64 + made.max_held_bytes // MIB),
        made.feature_cache_bytes // MIB,
        int(run_dir["sizeLimit"].removesuffix("Mi")),
    ]
    if made.kafka.topic:
        parts.append(192 + made.log.queue_bytes // MIB + made.workers * made.log.lent_bytes // MIB)
    limits = container(case)["resources"]["limits"]
    given = int(limits["memory"].removesuffix("Mi"))
    if case == "small":
        assert given == 1024
        assert sum(parts) <= given
    else:
        assert given == sum(parts)
        assert float(limits["cpu"]) == made.workers + made.frontdoors
    assert container(case)["resources"]["requests"] == limits


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_is_on_a_volume(case: str) -> None:
    """The root file system is read-only."""
    own = container(case)
    assert own["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod(case)["securityContext"]["runAsNonRoot"] is True
    writable = {PurePosixPath(one["mountPath"]) for one in own["volumeMounts"] if not one.get("readOnly")}
    mounted = {one["name"] for one in own["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod(case)["volumes"]}
    made = settings(case)
    for path in (made.run_dir, made.state_dir):
        # Below the volume, not the volume itself: that one belongs to root and is open to its group.
        assert any(mount in PurePosixPath(path).parents for mount in writable), path
    read = {made.tls.cert, made.tls.client_ca, made.etcd.ca, made.etcd.key, made.kafka.ca, made.kafka.cert}
    files = [PurePosixPath(path) for path in read if path is not None]
    places = {PurePosixPath(one["mountPath"]) for one in own["volumeMounts"]}
    assert all(path.parent in places for path in files)


@pytest.mark.parametrize("case", CASES)
def test_probes_ask_what_is_answered(case: str) -> None:
    own = container(case)
    asked = []
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        probe = own[kind]
        if case == "everything":  # mTLS: kubelet has no certificate
            assert probe["exec"]["command"][:2] == ["inferflow", "probe"]
            asked.append(probe["exec"]["command"][2])
        else:
            assert probe["httpGet"]["scheme"] == "HTTP"
            assert probe["httpGet"]["port"] in {port["name"] for port in own["ports"]}
            asked.append(probe["httpGet"]["path"])
    assert asked == [PATHS[0], PATHS[0], PATHS[1]]


@pytest.mark.parametrize("case", CASES)
def test_everything_selects_the_pods(case: str) -> None:
    manifests = kept(case)
    deployment = only(manifests, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selectors = [node["matchLabels"] for node in walk(deployment["spec"]) if "matchLabels" in node]
    for manifest in manifests:
        if manifest["kind"] == "Service":
            selectors.append(manifest["spec"]["selector"])
            ports = {port["name"] for port in container(case)["ports"]}
            assert {port["targetPort"] for port in manifest["spec"]["ports"]} <= ports
        elif manifest["kind"] == "PodDisruptionBudget":
            selectors.append(manifest["spec"]["selector"]["matchLabels"])
        elif manifest["kind"] == "NetworkPolicy":
            selectors.append(manifest["spec"]["podSelector"]["matchLabels"])
    assert all(selected(labels, by) for by in selectors)
    assert len(selectors) >= 2


def test_the_monitor_finds_the_metrics() -> None:
    manifests = kept("everything")
    monitor = only(manifests, "ServiceMonitor")["spec"]
    (service,) = [
        one
        for one in manifests
        if one["kind"] == "Service"
        and selected(one["metadata"]["labels"], monitor["selector"]["matchLabels"])
    ]
    assert monitor["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    assert settings("everything").admin_host == "0.0.0.0"
    assert settings("etcd").admin_host == "127.0.0.1"
    (trigger,) = only(manifests, "ScaledObject")["spec"]["triggers"]
    assert f'service="{service["metadata"]["name"]}"' in trigger["metadata"]["query"]


def test_the_admin_port_is_for_monitoring_only() -> None:
    clients, monitoring = only(kept("everything"), "NetworkPolicy")["spec"]["ingress"]
    assert clients["ports"] == [{"port": "grpc"}]
    assert monitoring["ports"] == [{"port": "admin"}]
    assert "namespaceSelector" in monitoring["from"][0]


def test_an_autoscaler_and_a_number_of_replicas_do_not_quarrel() -> None:
    assert only(kept("small"), "Deployment")["spec"]["replicas"] == 2
    for case in ("etcd", "everything"):
        assert "replicas" not in only(kept(case), "Deployment")["spec"]
    scaled = only(kept("etcd"), "HorizontalPodAutoscaler")["spec"]
    assert scaled["scaleTargetRef"]["name"] == only(kept("etcd"), "Deployment")["metadata"]["name"]


def test_inline_configs_are_laid_out_as_a_directory() -> None:
    (volume,) = [one for one in pod("small")["volumes"] if one["name"] == "configs"]
    (source,) = volume["projected"]["sources"]
    data = only(kept("small"), "ConfigMap")["data"]
    paths = {item["path"]: json.loads(data[item["key"]]) for item in source["configMap"]["items"]}
    assert paths.keys() == {"config-map/shop.json", "expression-config/sum.json"}
    assert paths["expression-config/sum.json"] == {"expression": "a b +"}


# ---------------------------------------------------------------- with schemas of operators


def closed(schema: Any) -> Any:
    """The same schema for strict readers: a property that it does not name is an error."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    below = {name: closed(one) for name, one in schema.items()}
    if "properties" in below and not below.get("x-kubernetes-preserve-unknown-fields"):
        below.setdefault("additionalProperties", False)
    return below


def problems(manifest: Manifest) -> list[str]:
    """What the definition of its kind has against a manifest."""
    group, version = manifest["apiVersion"].split("/")
    (path,) = (TOOLS / "crds").glob(f"{group}_{manifest['kind'].lower()}s.yaml")
    versions = yaml.safe_load(path.read_text())["spec"]["versions"]
    (schema,) = [
        one["schema"]["openAPIV3Schema"] for one in versions if one["name"] == version and one["served"]
    ]
    metadata = {"metadata": {"type": "object"}}  # Kubernetes' own
    schema = closed({**schema, "properties": {**schema["properties"], **metadata}})
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(manifest)]


@pytest.mark.full
def test_operators_know_every_field() -> None:
    custom = {one["kind"]: one for one in kept("everything") if one["kind"] in CUSTOM}
    assert custom.keys() == set(CUSTOM)
    for manifest in custom.values():
        assert problems(manifest) == []
        misspelt = {**manifest, "spec": {**manifest["spec"], "triggerz": []}}
        assert len(problems(misspelt)) == 1


# ---------------------------------------------------------------- with helm


@pytest.mark.full
@pytest.mark.parametrize("case", CASES)
def test_helm_renders_what_is_kept(case: str) -> None:
    assert render(case) == (RENDERS / f"{case}.yaml").read_text()


@pytest.mark.full
@pytest.mark.parametrize("case", CASES)
def test_helm_finds_nothing_to_complain_about(case: str) -> None:
    run = helm("lint", CHART, "--strict", "--kube-version", KUBERNETES, "-f", values(case))
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.full
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([], "give exactly one of config.etcd.servers, config.inline, config.volume; given: none"),
        (["config.etcd.servers={e}", "config.volume.configMap.name=a"], "given: config.etcd, config.volume"),
        (["resources.memory=1Gi"], "1Gi is too small: 256 + 3 workers x (192 + 256 matrix)"),
        (["resources.memory=1500M"], "/resources/memory"),
        (["resources.cores=2"], "2 is too few for 3 workers"),
        (["workers=0"], "minimum"),
        (["wrokers=3"], "additional properties 'wrokers' not allowed"),
        (["app.logLevel=loud"], "app/logLevel"),
        (["app.adminPort=8085"], "app.adminPort: 8085 is app.port too"),
        (["drainSeconds=-1"], "drainSeconds"),
        (
            ["settings.INFERFLOW_WORKERS=3"],
            "settings.INFERFLOW_WORKERS: this chart sets it from a value of its own",
        ),
        (["settings.PATH=x"], "at '/settings': additional properties 'PATH' not allowed"),
        (["autoscaling.enabled=true", "keda.enabled=true"], "enable one of them"),
        (["keda.enabled=true"], "keda.serverAddress: KEDA needs the address of a Prometheus"),
        (["tls.clientCa=true"], "tls.clientCa: needs secrets.tls"),
        (["config.etcd.mutualTls=true"], "config.etcd.mutualTls: needs config.etcd.tlsSecret"),
        (["prometheus.serviceMonitor.enabled=true"], "needs prometheus.enabled"),
        (["inferenceLogs.topic=t"], "inferenceLogs: give both brokers and topic"),
        (["inferenceLogs.tlsSecret=t"], "need inferenceLogs.tls"),
    ],
)
def test_helm_refuses_what_cannot_be_with_a_sentence(given: list[str], sentence: str) -> None:
    defaults = ["config.volume.configMap.name=configs"] if given else []
    arguments = [f"--set{'-string' if '=3' in one else ''}={one}" for one in [*defaults, *given]]
    run = helm("template", "rank", CHART, "--kube-version", KUBERNETES, *arguments)
    assert run.returncode != 0
    assert sentence in run.stderr
