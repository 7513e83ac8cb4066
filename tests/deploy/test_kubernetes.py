"""The manifests are valid, agree with each other, and say what the image and the service understand."""

from __future__ import annotations

import importlib.util
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import skip_or_fail

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def manifests() -> dict[str, dict[str, Any]]:
    files = sorted((ROOT / "deploy/kubernetes").glob("*.yaml"))
    return {d["kind"]: d for file in files for d in yaml.safe_load_all(file.read_text())}


@pytest.fixture
def pod(manifests: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return manifests["Deployment"]["spec"]["template"]["spec"]


def test_manifests_are_valid_to_the_last_key(manifests):
    if importlib.util.find_spec("kubernetes_validate") is None:
        skip_or_fail("kubernetes-validate is not installed")
    import kubernetes_validate

    wanted = (
        "ConfigMap Deployment HorizontalPodAutoscaler NetworkPolicy PersistentVolumeClaim PodDisruptionBudget Service"
    )
    assert sorted(manifests) == wanted.split()
    for manifest in manifests.values():
        kubernetes_validate.validate(manifest, "1.31", strict=True)
    misspelt = deepcopy(manifests["Deployment"])
    misspelt["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(misspelt, "1.31", strict=True)


def test_everything_selects_the_rankers_pods(manifests):
    labels = manifests["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = [
        manifests["Deployment"]["spec"]["selector"]["matchLabels"],
        manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        manifests["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        manifests["Service"]["spec"]["selector"],
    ]
    assert selectors == [labels] * 4
    target = manifests["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", manifests["Deployment"]["metadata"]["name"])


def test_the_pod_mounts_what_exists_and_what_the_images_command_reads(manifests, pod):
    (container,) = pod["containers"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert mounts["/fusion"]["configMap"]["name"] == manifests["ConfigMap"]["metadata"]["name"]
    claim = mounts["/models"]["persistentVolumeClaim"]["claimName"]
    assert claim == manifests["PersistentVolumeClaim"]["metadata"]["name"]
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert '"--models", "/models", "--fusion", "/fusion"' in dockerfile
    exposed = dockerfile.partition("EXPOSE ")[2].split("\n")[0].split()
    assert {str(port["containerPort"]) for port in container["ports"]} == set(exposed)
    assert f"USER {pod['securityContext']['runAsUser']}" in dockerfile
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]


def test_the_pods_settings_and_policies_are_read_by_the_service(manifests, pod, tmp_path):
    from fusion.policy import load_config
    from service.settings import load_settings, unknown_variables

    environment = {pair["name"]: pair["value"] for pair in pod["containers"][0]["env"]}
    assert unknown_variables(environment) == []
    settings = load_settings({"models": "m", "fusion": "f"}, environment)
    (content,) = manifests["ConfigMap"]["data"].values()
    (tmp_path / "fusion.yaml").write_text(content)
    assert load_config(tmp_path / "fusion.yaml").version.startswith("sha256:")
    sleep = float(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1].split("sleep(")[1].rstrip(")"))
    needed = sleep + settings.drain_seconds + settings.stop_seconds
    assert pod["terminationGracePeriodSeconds"] > needed


def test_probes_ask_routes_that_there_are(pod):
    routes = (ROOT / "docs/api.md").read_text()
    ports = {port["name"] for port in pod["containers"][0]["ports"]}
    asked = {kind: pod["containers"][0][f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")}
    assert {get["path"] for get in asked.values()} == {"/readyz", "/healthz"}
    assert asked["liveness"]["path"] == "/healthz"
    for get in asked.values():
        assert f"`GET {get['path']}`" in routes and get["port"] in ports
