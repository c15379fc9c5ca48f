"""Tests of the files in clusters/: Ray, KubeRay and SkyPilot accept them, they agree, and they hold no secret."""

import copy
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.docker import docker_start_cmds
from ray.autoscaler._private.util import prepare_config, validate_config

from vlcp_ray import __version__
from vlcp_ray.cli import parser
from vlcp_ray.scale import Scale, load_scale

ROOT = Path(__file__).parents[1]
CLUSTERS = ROOT / "clusters"
SCHEMAS = ROOT.parent / "shared" / "data" / "kuberay"
CLOUDS = ["aws", "gcp"]
MANIFESTS = ["raycluster", "rayjob"]
FILES = sorted(path for path in CLUSTERS.rglob("*") if path.is_file())
YAMLS = [file for file in FILES if file.suffix == ".yaml"]
LAUNCHERS = {CLUSTERS / f"{cloud}.yaml": CLUSTERS / f"{cloud}.toml" for cloud in CLOUDS}


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CLUSTERS / f"{name}.yaml").read_text(encoding="utf-8"))
    return found


def check_launcher(config: dict[str, Any]) -> None:
    """As `ray up` does before it calls a cloud; the zones' addresses are the cloud's to give."""
    config["provider"]["project_id"] = config["provider"].get("project_id") or "project"
    validate_config(prepare_config(copy.deepcopy(config)))
    provider = json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text(encoding="utf-8"))
    assert config["provider"].keys() <= provider["properties"]["provider"]["properties"].keys()
    known = {"resources", "node_config", "min_workers", "max_workers"}
    assert not {key for kind in config["available_node_types"].values() for key in kind} - known


@pytest.mark.parametrize("cloud", CLOUDS)
def test_launcher_file_passes_rays_validation(cloud: str) -> None:
    check_launcher(read(cloud))


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize(
    "place", [(), ("provider", "security_group"), ("docker",), ("available_node_types", "gpu_spot")]
)
def test_launcher_file_with_misspelt_key_fails(cloud: str, place: tuple[str, ...]) -> None:
    config = inner = read(cloud)
    for key in place:
        inner = inner.setdefault(key, {})
    inner["max_wrokers"] = 1
    with pytest.raises((jsonschema.ValidationError, AssertionError)):
        check_launcher(config)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_launcher_head_runs_no_work_and_workers_scale_from_zero(cloud: str) -> None:
    kinds = read(cloud)["available_node_types"]
    assert kinds["head"]["resources"] == {"CPU": 0}
    assert all(kind["min_workers"] == 0 for name, kind in kinds.items() if name != "head")
    spot = {name for name, kind in kinds.items() if re.search("spot", json.dumps(kind["node_config"]), re.IGNORECASE)}
    assert spot == {"cpu_spot", "gpu_spot"}
    assert sum(kind.get("max_workers", 0) for kind in kinds.values()) == read(cloud)["max_workers"]
    assert any("--dashboard-host=127.0.0.1" in line for line in read(cloud)["head_start_ray_commands"])


def strict(schema: Any) -> Any:
    """The same schema, in which a key that it does not name is an error."""
    if isinstance(schema, dict):
        closed = {key: strict(value) for key, value in schema.items()}
        keeps = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
        return closed | ({"additionalProperties": False} if "properties" in schema and not keeps else {})
    return [strict(item) for item in schema] if isinstance(schema, list) else schema


@cache
def schema_of(name: str) -> Any:
    file = SCHEMAS / f"{name}-v1.schema.json"
    if not file.exists():
        pytest.skip("KubeRay's schemas are not beside the project")
    return strict(json.loads(file.read_text(encoding="utf-8")))


def check(value: Any, schema: Any) -> None:
    # Not `jsonschema.validate`, which also checks the schema itself, a second each time.
    jsonschema.Draft202012Validator(schema).validate(value)


def check_manifest(name: str, manifest: dict[str, Any]) -> None:
    """Against KubeRay's schema, and the pods, which it leaves open there, against the one of a RayJob's submitter."""
    metadata = strict({"required": ["name"], "properties": {"name": {"type": "string"}}})
    schema = schema_of(name)
    check(manifest, schema | {"properties": schema["properties"] | {"metadata": metadata}})
    pod = schema_of("rayjob")["properties"]["spec"]["properties"]["submitterPodTemplate"]
    cluster = cluster_in(name, manifest)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        check(group["template"], pod)


def cluster_in(name: str, manifest: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = manifest["spec"]
    return spec if name == "raycluster" else spec["rayClusterSpec"]


def cluster_of(name: str) -> dict[str, Any]:
    return cluster_in(name, read(f"kuberay/{name}"))


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest_passes_kuberays_schema(name: str) -> None:
    check_manifest(name, read(f"kuberay/{name}"))


POD = ("workerGroupSpecs", 2, "template", "spec")


@pytest.mark.parametrize(
    "place",
    [
        (),
        ("headGroupSpec",),
        ("authOptions",),
        ("autoscalerOptions",),
        ("workerGroupSpecs", 0),
        ("workerGroupSpecs", 0, "template"),
        POD,
        (*POD, "tolerations", 0),
        (*POD, "securityContext"),
        (*POD, "containers", 0),
        (*POD, "containers", 0, "resources"),
        (*POD, "containers", 0, "securityContext"),
        (*POD, "volumes", 0),
    ],
    ids=lambda place: ".".join(map(str, place)) or "spec",
)
@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest_with_misspelt_key_fails(name: str, place: tuple[str | int, ...]) -> None:
    manifest = read(f"kuberay/{name}")
    inner: Any = cluster_in(name, manifest)
    for key in place:
        inner = inner[key]
    inner["maxReplcas"] = 1
    with pytest.raises(jsonschema.ValidationError, match="maxReplcas"):
        check_manifest(name, manifest)


def test_rayjob_and_raycluster_have_the_same_cluster() -> None:
    assert cluster_of("rayjob") == cluster_of("raycluster")


def test_manifest_head_runs_no_work_and_requires_a_token() -> None:
    spec = cluster_of("raycluster")
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert (spec["authOptions"]["mode"], spec["autoscalerOptions"]["version"]) == ("token", "v2")
    assert {group["groupName"]: group["minReplicas"] for group in spec["workerGroupSpecs"]} == dict.fromkeys(
        ("cpu-spot", "gpu", "gpu-spot"), 0
    )


def machines(name: str) -> dict[str, tuple[int, float, float]]:
    """Of each kind of machine of a cluster: how many there can be, and the CPUs and GPUs of one."""
    if name != "kuberay/scale":
        kinds = read(name)["available_node_types"].items()
        has = {kind: (group.get("max_workers", 0), group["resources"]) for kind, group in kinds}
        return {kind: (count, one["CPU"], one.get("GPU", 0)) for kind, (count, one) in has.items()}
    found = {}
    for group in cluster_of("raycluster")["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        one = (float(limits["cpu"]), float(limits.get("nvidia.com/gpu", 0)))
        found[group["groupName"].replace("-", "_")] = (group["maxReplicas"], *one)
    return found


def most_devices(name: str) -> dict[str, tuple[float, float]]:
    """The most CPUs and GPUs that each kind of machine of a cluster can come to."""
    return {kind: (count * cpus, count * gpus) for kind, (count, cpus, gpus) in machines(name).items()}


@pytest.mark.parametrize("name", [*CLOUDS, "kuberay/scale"])
def test_scale_file_fits_its_cluster(name: str) -> None:
    scale, most = load_scale(str(CLUSTERS / f"{name}.toml")), most_devices(name)
    cpus, gpus = (sum(counts) for counts in zip(*most.values(), strict=True))
    for pools in (("ingest",), ("caption", "encode"), ("finetune",), ("prototype",), ("generate",), ("evaluate",)):
        taken = [getattr(scale, pool) for pool in pools]
        assert sum(pool.num_workers * pool.num_gpus for pool in taken) <= gpus, pools
        assert sum(pool.num_workers * pool.num_cpus for pool in taken) <= cpus, pools
    assert scale.finetune.num_workers * scale.finetune.num_gpus == most["gpu"][1]  # all ranks fit without spot
    assert scale.finetune.required_workers == 8  # those of one machine
    assert scale.resource_timeout > Scale().resource_timeout


@pytest.mark.parametrize("name", [*CLOUDS, "kuberay/scale"])
def test_scale_ranks_fit_on_demand_machines_only(name: str) -> None:
    rank, kinds = load_scale(str(CLUSTERS / f"{name}.toml")).finetune, machines(name)
    count, cpus, gpus = kinds["gpu"]
    on_one = min(cpus // rank.num_cpus, gpus // rank.num_gpus)
    assert rank.required_workers <= on_one
    assert rank.num_workers <= count * on_one
    assert all(one < rank.num_cpus for kind, (_, one, has) in kinds.items() if kind != "gpu" and has)


@pytest.mark.parametrize("name", [*CLOUDS, "kuberay/scale"])
def test_scale_workers_fit_a_spot_machine(name: str) -> None:
    scale, (_, cpus, gpus) = load_scale(str(CLUSTERS / f"{name}.toml")), machines(name)["gpu_spot"]
    for pool in (scale.caption, scale.encode, scale.generate, scale.evaluate):
        assert pool.num_cpus <= cpus
        assert pool.num_gpus <= gpus
    assert all(pool.required_workers == 1 for pool in (scale.caption, scale.encode, scale.generate))


def test_dockerfile_installs_the_projects_dependencies() -> None:
    docker = (CLUSTERS / "Dockerfile").read_text(encoding="utf-8")
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    assert re.findall(r"pip install (.*?) \\\n", docker) == ["--no-cache-dir --constraint constraints.txt '.[gpu]'"]
    assert len(re.findall(r"\b(?:pip|conda|apt|uv) ", docker)) == 1
    (ray,) = (pin.partition("==")[2] for pin in pins if pin.startswith("ray["))
    assert re.findall(r"^FROM rayproject/ray:(.*?)-py(\d)(\d+)", docker, re.MULTILINE) == [(ray, "3", "11")]


def test_dockerignore_sends_what_the_dockerfile_copies() -> None:
    docker = (CLUSTERS / "Dockerfile").read_text(encoding="utf-8")
    copied = {name for line in re.findall(r"^COPY --\S+ (.*) \S+$", docker, re.MULTILINE) for name in line.split()}
    sent = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert sent[1] == "*"
    assert {line.removeprefix("!") for line in sent if line.startswith("!")} == copied
    assert {"constraints.txt", "NOTICE", "vlcp_ray"} <= copied


def test_cluster_files_name_the_same_ray() -> None:
    assert {cluster_of(name)["rayVersion"] for name in MANIFESTS} == {"2.60.0"}


#: The keys of https://docs.skypilot.co/en/latest/reference/yaml-spec.html that one machine can use.
SKYPILOT = {
    "": {"name", "workdir", "num_nodes", "resources", "envs", "secrets", "file_mounts", "setup", "run", "config"},
    "resources": {
        "infra", "accelerators", "cpus", "memory", "instance_type", "use_spot", "disk_size", "disk_tier",
        "network_tier", "image_id", "labels", "autostop", "any_of", "ordered", "job_recovery",
    },
}  # fmt: skip


def test_skypilot_file_has_documented_keys_and_a_command_that_parses() -> None:
    task = read("skypilot")
    assert task.keys() <= SKYPILOT[""]
    assert task["resources"].keys() <= SKYPILOT["resources"]
    (command,) = (line for line in task["run"].splitlines() if line.startswith("vlcp-ray "))
    used = set(re.findall(r"\$(\w+)", task["run"]))
    assert used == task["envs"].keys()
    readme = (CLUSTERS / "README.md").read_text(encoding="utf-8")
    launch = next(
        line for line in readme.splitlines() if line.startswith("sky jobs launch clusters/skypilot.yaml --env")
    )
    given = dict(word.split("=", 1) for word in shlex.split(launch) if "=" in word)
    assert given.keys() == {name for name, value in task["envs"].items() if value is None}
    values = task["envs"] | given
    words = shlex.split(re.sub(r"\$(\w+)", lambda found: values[found[1]], command))
    parsed = parser().parse_args(words[1:])
    assert (ROOT / parsed.job).is_file()
    assert "://" in parsed.root  # the disk ends with the machine


def values_of(key: str, inside: Any) -> Iterator[Any]:
    """All values under a key, at any depth."""
    if isinstance(inside, dict):
        yield from (value for name, value in inside.items() if name == key)
    if isinstance(inside, dict | list):
        for value in inside.values() if isinstance(inside, dict) else inside:
            yield from values_of(key, value)


def test_images_are_named_by_digest() -> None:
    names = [*CLOUDS, *(f"kuberay/{name}" for name in MANIFESTS)]
    images = {image for name in names for image in values_of("image", read(name))}
    images.add(read("skypilot")["resources"]["image_id"].removeprefix("docker:"))
    assert len(images) == 1
    assert re.fullmatch(r"\S+/vlcp-ray@sha256:(DIGEST|[0-9a-f]{64})", images.pop())  # the README fills it in
    assert not [key for name in CLOUDS for key in read(name)["docker"] if key.endswith("_image")]
    docker = (CLUSTERS / "Dockerfile").read_text(encoding="utf-8")
    (base,) = re.findall(r"^FROM (\S+)", docker, re.MULTILINE)
    assert base.endswith("@sha256:${DIGEST}")
    assert re.findall(r"^ARG (.*)", docker, re.MULTILINE) == ["DIGEST"]  # no default: docker build fails without it
    assert not re.findall(r"vlcp-ray:[\d.]+", "".join(file.read_text(encoding="utf-8") for file in YAMLS))


def test_readme_fills_in_the_digest_of_every_file(tmp_path: Path) -> None:
    (command,) = re.findall(r"^ +(sed .*)$", (CLUSTERS / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    if not any("sha256:DIGEST" in file.read_text(encoding="utf-8") for file in YAMLS):
        pytest.skip("the digest is filled in")
    for file in YAMLS:
        (tmp_path / file.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file.relative_to(ROOT)).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    image = f"example.com/vlcp-ray@sha256:{'0' * 64}"
    subprocess.run(["bash", "-c", command], cwd=tmp_path, env=os.environ | {"IMAGE": image}, check=True)
    filled = [(tmp_path / file.relative_to(ROOT)).read_text(encoding="utf-8") for file in YAMLS]
    assert "DIGEST" not in "".join(filled)
    assert sum(text.count(image) for text in filled) == 12


def test_readme_commands_are_complete() -> None:
    readme = (CLUSTERS / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"clusters/[\w/.-]+\.json", readme):
        assert json.loads((ROOT / name).read_text(encoding="utf-8"))["Version"] == "2012-10-17"
    base = re.search(r"^FROM (\S+)@", (CLUSTERS / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert base
    assert f"BASE={base[1]}\n" in readme
    assert set(re.findall(r"--build-arg (\w+)=", readme)) == {"DIGEST"}
    accounts = set(identities("gcp").values())
    assert accounts == {f"vlcp-ray-{kind}" for kind in ("head", "worker")}
    assert readme.count("for KIND in head worker; do") == 2


def test_readme_tags_the_image_with_the_version() -> None:
    readme = (CLUSTERS / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"vlcp-ray:([\d.]*\d)", readme)) == {__version__}


def test_drivers_and_base_image_fit_cuda_13() -> None:
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert "torch==2.13.0" in pins["gpu"]  # PyPI's is built for CUDA 13: driver 580 or newer
    docker = (CLUSTERS / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"^FROM \S+-cu(\d\d)", docker, re.MULTILINE) == ["13"]
    kinds = read("gcp")["available_node_types"].values()
    families = {disk["initializeParams"]["sourceImage"] for kind in kinds for disk in kind["node_config"]["disks"]}
    assert all(int(family.rpartition("-nvidia-")[2]) >= 580 for family in families)
    # AWS's release notes: 580 since December 2025, 595 since April 2026. The name has no version.
    assert {kind["node_config"]["ImageId"].split("/")[-3] for kind in read("aws")["available_node_types"].values()} == {
        "base-oss-nvidia-driver-gpu-ubuntu-24.04"
    }


@pytest.mark.parametrize("cloud", CLOUDS)
def test_launcher_gives_every_machine_the_token(cloud: str) -> None:
    config = prepare_config(read(cloud) | {"provider": read(cloud)["provider"] | {"project_id": "project"}})
    docker, mounts = config["docker"], config["file_mounts"]
    assert not [key for key in docker if key.endswith("run_options") and key != "run_options"]
    assert mounts == {"~/.ray/auth_token": "~/.ray/auth_token"}  # the place where `ray get-auth-token` writes it
    start = docker_start_cmds("ubuntu", "i", mounts, "c", docker["run_options"], "vlcp-ray", "/home/ray", "docker")
    assert "~/.ray/auth_token:/home/ray/.ray/auth_token " in start
    assert "--env RAY_AUTH_MODE=token " in start
    assert "--net=host" in start  # why a hop limit of 1 is enough on AWS
    assert any("~/.ray/auth_token" in command for command in config["setup_commands"])


def test_ray_without_its_token_does_not_start(tmp_path: Path) -> None:
    environment = {name: text for name, text in os.environ.items() if not name.startswith("RAY_AUTH")}
    done = subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", "start", "--address=127.0.0.1:1"],
        env=environment | {"HOME": str(tmp_path), "RAY_AUTH_MODE": "token"},
        capture_output=True,
        text=True,
    )
    assert done.returncode
    assert "no authentication token was found" in done.stderr


def test_aws_machines_require_session_tokens_for_metadata() -> None:
    for kind in read("aws")["available_node_types"].values():
        assert kind["node_config"]["MetadataOptions"] == {
            "HttpTokens": "required",
            "HttpPutResponseHopLimit": 1,
            "HttpEndpoint": "enabled",
        }


def identities(name: str) -> dict[str, str]:
    """Who the machines of each kind are, in the cloud or in Kubernetes."""
    if name == "kuberay":
        spec = cluster_of("raycluster")
        pods = {"head": spec["headGroupSpec"]} | {group["groupName"]: group for group in spec["workerGroupSpecs"]}
        return {kind: group["template"]["spec"]["serviceAccountName"] for kind, group in pods.items()}
    kinds = {kind: one["node_config"] for kind, one in read(name)["available_node_types"].items()}
    if name == "aws":
        return {kind: one["IamInstanceProfile"]["Name"] for kind, one in kinds.items()}
    return {kind: one["serviceAccounts"][0]["email"].partition("@")[0] for kind, one in kinds.items()}


@pytest.mark.parametrize("name", [*CLOUDS, "kuberay"])
def test_head_and_workers_have_different_rights(name: str) -> None:
    found = identities(name)
    assert found.pop("head") == "vlcp-ray-head"
    assert len(found) == 3
    assert set(found.values()) == {"vlcp-ray-worker"}


def statements(name: str) -> list[dict[str, Any]]:
    policy = json.loads((CLUSTERS / "rights" / f"{name}.json").read_text(encoding="utf-8"))
    assert policy["Version"] == "2012-10-17"
    found: list[dict[str, Any]] = policy["Statement"]
    assert all(one["Effect"] == "Allow" and {"Action", "Resource"} <= one.keys() for one in found)
    return found


def actions(statement: dict[str, Any]) -> list[str]:
    return [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]


def test_bucket_policy_gives_the_bucket_alone() -> None:
    for statement in statements("aws-bucket"):
        assert re.fullmatch(r"arn:aws:s3:::BUCKET(/\*)?", statement["Resource"])
        assert all(re.fullmatch(r"s3:\w+", action) for action in actions(statement))
        assert not [action for action in actions(statement) if re.search("Policy|Acl|DeleteBucket", action)]


def test_head_policy_starts_and_ends_only_machines_of_the_cluster() -> None:
    rules = {action: one for one in statements("aws-head") for action in actions(one) if one["Resource"] != "*"}
    everywhere = [action for one in statements("aws-head") if one["Resource"] == "*" for action in actions(one)]
    assert all(action.startswith("ec2:Describe") for action in everywhere)
    assert not [action for action in rules if "*" in action]
    cluster = read("aws")["cluster_name"]
    assert rules["ec2:TerminateInstances"]["Condition"]["StringEquals"] == {"aws:ResourceTag/ray-cluster-name": cluster}
    assert rules["iam:PassRole"]["Resource"].endswith(":role/vlcp-ray-worker")
    (machine,) = (
        one
        for one in statements("aws-head")
        if one["Resource"] == "arn:aws:ec2:*:*:instance/*" and actions(one) == ["ec2:RunInstances"]
    )
    assert machine["Condition"]["StringEquals"] == {
        "aws:RequestTag/ray-cluster-name": cluster,
        "ec2:MetadataHttpTokens": "required",
    }


CONFINED = {
    "runAsNonRoot": True,
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def pods(name: str) -> dict[str, dict[str, Any]]:
    """The pod templates of a manifest, by what they are."""
    spec, cluster = read(f"kuberay/{name}")["spec"], cluster_of(name)
    found = {"head": cluster["headGroupSpec"]["template"]}
    found |= {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return found | ({"submitter": spec["submitterPodTemplate"]} if name == "rayjob" else {})


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_pass_the_restricted_pod_security_standard(name: str) -> None:
    assert cluster_of(name)["autoscalerOptions"]["securityContext"] == CONFINED
    for kind, template in pods(name).items():
        pod = template["spec"]
        context = pod["securityContext"]
        assert (context["runAsNonRoot"], context["runAsUser"], context["seccompProfile"]) == (
            True, 1000, {"type": "RuntimeDefault"},
        ), kind  # fmt: skip
        assert all(box["securityContext"] == CONFINED for box in pod["containers"]), kind
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers", "ephemeralContainers"} & pod.keys(), kind
        assert all(volume.keys() == {"name", "emptyDir"} for volume in pod["volumes"]), kind
        assert not [port for box in pod["containers"] for port in box.get("ports", []) if "hostPort" in port]


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_have_writable_folders_where_ray_and_models_write(name: str) -> None:
    for kind, template in pods(name).items():
        (box,) = template["spec"]["containers"]
        writable = {mount["mountPath"] for mount in box["volumeMounts"] if not mount.get("readOnly")}
        assert {mount["name"] for mount in box["volumeMounts"]} <= {one["name"] for one in template["spec"]["volumes"]}
        assert "/tmp" in writable, kind
        if kind != "submitter":
            assert {"/data", "/dev/shm", "/home/ray/.cache", "/home/ray/.config"} <= writable, kind
            folders = {one["name"]: one["value"] for one in box["env"]}
            assert all(folders[name].startswith("/data/") for name in ("HF_HOME", "RAY_object_spilling_directory"))


@pytest.mark.parametrize("name", MANIFESTS)
def test_only_the_head_talks_to_kubernetes(name: str) -> None:
    found = {kind: pod["spec"].get("automountServiceAccountToken", True) for kind, pod in pods(name).items()}
    assert {kind for kind, mounted in found.items() if mounted} == {"head"}


def access() -> list[dict[str, Any]]:
    text = (CLUSTERS / "kuberay" / "access.yaml").read_text(encoding="utf-8")
    return list(yaml.safe_load_all(text))


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a label selector of Kubernetes picks a pod or a namespace with these labels; an empty one picks all."""
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    rules = selector.get("matchExpressions", [])
    assert all(rule.keys() == {"key", "operator", "values"} and rule["operator"] == "In" for rule in rules)
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(rule["key"]) in rule["values"] for rule in rules
    )


def reaches(source: dict[str, str], target: dict[str, str], port: int, *, same_namespace: bool = True) -> bool:
    """Whether the policies of access.yaml let a pod reach a port of another."""
    specs = [one["spec"] for one in access() if one["kind"] == "NetworkPolicy"]
    assert all(spec.keys() == {"podSelector", "policyTypes", "ingress"} for spec in specs)
    policies = [spec for spec in specs if selects(spec["podSelector"], target) and "Ingress" in spec["policyTypes"]]
    if not policies:
        return True
    rules = [rule for spec in policies for rule in spec["ingress"]]
    assert all(rule.keys() <= {"from", "ports"} for rule in rules)
    return any(
        selects(peer["podSelector"], source) and (same_namespace or "namespaceSelector" in peer)
        for rule in rules
        if "ports" not in rule or port in [one["port"] for one in rule["ports"]]
        for peer in rule["from"]
    )


OPERATOR = {"app.kubernetes.io/name": "kuberay-operator"}


@pytest.mark.parametrize("port", [6379, 8265, 10001, 30000])
def test_network_policy_lets_only_the_cluster_and_its_submitter_reach_ray(port: int) -> None:
    found = pods("rayjob")
    labels = {kind: pod["metadata"]["labels"] for kind, pod in found.items()}
    head, worker, submitter = labels["head"], labels["gpu"], labels["submitter"]
    assert labels["cpu-spot"] == labels["gpu-spot"] == worker
    for source in (head, worker):
        assert all(reaches(source, target, port) for target in (head, worker))
        assert not reaches(source, head, port, same_namespace=False)
    assert reaches(submitter, head, port) is (port == 8265)
    assert reaches(OPERATOR, head, port, same_namespace=False) is (port == 8265)
    for source in ({}, {"app": "notebook"}):
        assert not any(reaches(source, target, port) for target in (head, worker))
    assert not reaches(submitter, worker, port)


def test_access_file_has_the_service_accounts_of_the_pods() -> None:
    accounts = {one["metadata"]["name"]: one for one in access() if one["kind"] == "ServiceAccount"}
    assert accounts.keys() == set(identities("kuberay").values())
    assert accounts["vlcp-ray-worker"]["automountServiceAccountToken"] is False
    known = {("v1", "ServiceAccount"), ("networking.k8s.io/v1", "NetworkPolicy")}
    assert {(one["apiVersion"], one["kind"]) for one in access()} == known


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CLUSTERS)))
def test_cluster_files_give_no_folder_to_everybody(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert not re.search(r"chmod[^\n]*(\b[01]?[0-7]?[0-7][2367]\b|[oa]\+\w*w)", text)
    assert not re.search(r"--mode=0?[0-7]?[0-7][0-7][2367]\b", text)
    assert not re.search(r"\b[01]?777\b", text)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CLUSTERS)))
def test_cluster_files_name_existing_files_and_no_secret(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    for name in re.findall(r"(?:clusters|jobs)/[\w/.-]+\.(?:toml|yaml)", text):
        assert (ROOT / name).exists(), name
    text = re.sub(r"`AWS_[A-Z_]+`", "", text)  # the names of variables
    assert not re.search(r"access[_-]?key|password|AKIA|BEGIN |ghp_|hf_[A-Za-z]{8}", text, re.IGNORECASE)
    for harmless in (
        "MODE=token",
        "RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom",
        "auth_token: ~/.ray/auth_token",
        "HttpTokens: required",
        "AccountToken: false",
    ):
        text = text.replace(harmless, "")
    text = text.replace('"ec2:MetadataHttpTokens": "required"', "")
    assert not re.search(r"(secret|token)\w*[\"']?\s*[:=]\s*\S", text, re.IGNORECASE)
