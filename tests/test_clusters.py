"""Tests of the files in clusters/: Ray and KubeRay accept them, they agree, and they hold no secret."""

import copy
import json
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from vlcp_ray import __version__
from vlcp_ray.scale import Scale, load_scale

ROOT = Path(__file__).parents[1]
CLUSTERS = ROOT / "clusters"
SCHEMAS = ROOT.parent / "shared" / "data" / "kuberay"
CLOUDS = ["aws", "gcp"]
MANIFESTS = ["raycluster", "rayjob"]
FILES = sorted(path for path in CLUSTERS.rglob("*") if path.is_file())
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
        (*POD, "initContainers", 0, "securityContext"),
        (*POD, "containers", 0),
        (*POD, "containers", 0, "resources"),
        (*POD, "volumes", 0, "hostPath"),
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
    assert scale.finetune.required_workers < scale.finetune.num_workers
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
    assert re.findall(r"pip install (.*?) &&", docker) == ["--no-cache-dir '.[gpu]'"]
    assert len(re.findall(r"\b(?:pip|conda|apt|uv) ", docker)) == 1
    (ray,) = (pin.partition("==")[2] for pin in pins if pin.startswith("ray["))
    assert re.findall(r"^FROM rayproject/ray:(.*?)-py(\d)(\d+)", docker, re.MULTILINE) == [(ray, "3", "11")]
    sent = (ROOT / ".dockerignore").read_text(encoding="utf-8")
    assert all(f"!{name}" in sent for name in re.findall(r"^COPY \S+ (\w[\w.]*)", docker, re.MULTILINE))


def test_cluster_files_name_the_same_image_and_ray() -> None:
    images = {name for file in FILES for name in re.findall(r"vlcp-ray:[\d.]*\d", file.read_text(encoding="utf-8"))}
    assert images == {f"vlcp-ray:{__version__}"}
    assert {cluster_of(name)["rayVersion"] for name in MANIFESTS} == {"2.60.0"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CLUSTERS)))
def test_cluster_files_name_existing_files_and_no_secret(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    for name in re.findall(r"(?:clusters|jobs)/[\w/.-]+\.(?:toml|yaml)", text):
        assert (ROOT / name).exists(), name
    assert not re.search(r"access[_-]?key|password|AKIA|BEGIN |ghp_|hf_[A-Za-z]{8}", text, re.IGNORECASE)
    assert not re.search(r"(secret|token)\w*[\"']?\s*[:=]\s*\S", text, re.IGNORECASE)
