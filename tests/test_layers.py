"""Tests of the layers: who imports whom, where Ray is known, what loads at the start, where names of stages stand."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from vlcp_ray.stages import STAGES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vlcp_ray"
FILES = sorted(PACKAGE.rglob("*.py"))

CORE = """
    settings schemas seeds images store store.io store.aws store.files store.tables store.uris store.written
    store.artifact store.verify store.retrying_filesystem models models.networks models.words models.pretrained
    models.families models.architectures
    models.dit_classes
    monitoring monitoring.memory monitoring.allocator demo demo.digits
"""
RECORDS = """
    sources sources.* protocols protocols.protocol protocols.minimax protocols.rded protocols.rded_stored stages
    stages.stage stages.@ methods methods.*
"""
TOOLS = """
    captioning captioning.* exports exports.* bench bench.* doctor doctor.* inspection inspection.*
    housekeeping housekeeping.* offline offline.* scoring scoring.*
"""
#: From the bottom up: a module imports from its own layer and from those below it. The first pattern counts.
LAYERS = (
    ("core", CORE),
    ("records", RECORDS),
    ("settings", "config scale"),
    ("tools", "cost.count_*"),
    ("code", "models.* protocols.* monitoring.* store.* cost cost.* demo.* stages.sample_rows"),
    ("run", "stages.@.run"),
    ("stages", "stages.@.*"),
    ("engine", "engine engine.*"),
    ("tools", TOOLS),
    ("pipeline", "pipeline reference"),
    ("api", "api"),
    ("cli", "cli __main__"),
)
ORDER = ["core", "records", "settings", "code", "stages", "engine", "run", "tools", "pipeline", "api", "cli"]
HEAVY = {"diffusers", "matplotlib", "pandas", "ray", "sklearn", "torch", "torchvision", "transformers", "vllm"}


def module_of(file: Path) -> str:
    """`stages.pair.run` for vlcp_ray/stages/pair/run.py, `stages.pair` for its folder."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in FILES}


def layer_of(module: str) -> str:
    parts = module.split(".")
    if parts[0] == "stages" and len(parts) > 1 and parts[1] in STAGES:
        module = ".".join(["stages", "@", *parts[2:]])
    return next(name for name, patterns in LAYERS if any(fnmatch(module, pattern) for pattern in patterns.split()))


def imports_of(file: Path) -> Iterator[tuple[str, bool]]:
    """Every module that a file imports when it runs, as a dotted name, and whether at its top or in a function."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    }
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: write absolute imports"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                is_module = inner.removeprefix("vlcp_ray.") in MODULES
                yield (inner if is_module else str(node.module)), id(node) in top


def violations(module: str, file: Path) -> list[str]:
    """The imports of a module that go up, or into another stage's code.

    Code in the functions of a record, as in a method's file, is of the layer of code: it is loaded where it runs.
    """
    found = []
    for name, at_top in imports_of(file):
        target = name.removeprefix("vlcp_ray").lstrip(".")
        if not name.startswith("vlcp_ray") or target not in MODULES or not target:
            continue
        here = layer_of(module)
        here = "stages" if here in ("records", "code") and not at_top else here
        parts, own = target.split("."), module.split(".")
        other_stage = len(parts) > 2 and parts[0] == "stages" and own[:1] == ["stages"] and parts[1] != own[1:2][0]
        if ORDER.index(layer_of(target)) > ORDER.index(here) or other_stage:
            found.append(f"{module} -> {target}")
    return found


@pytest.mark.parametrize("module", [module for module in MODULES if module])
def test_module_imports_only_from_its_layer_and_below(module: str) -> None:
    assert violations(module, MODULES[module]) == []


def test_ray_is_imported_in_the_engine_and_in_run_files_only() -> None:
    users = {module for module, file in MODULES.items() for name, _ in imports_of(file) if name.split(".")[0] == "ray"}
    assert {layer_of(module) for module in users} == {"engine", "run"}


def test_top_of_the_package_has_at_most_twelve_modules() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 12


def test_names_of_stages_are_literals_only_in_their_folders_and_in_the_pipeline() -> None:
    found = []
    for module, file in MODULES.items():
        own = module.split(".")[1] if module.startswith("stages.") else ""
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and node.value in STAGES and node.value != own:
                found.append(f"{module}:{node.lineno} {node.value!r}")
    assert [place for place in found if not place.startswith("pipeline:")] == []


@pytest.mark.parametrize("module", ["vlcp_ray", "vlcp_ray.cli"])
def test_import_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert HEAVY & set(done.stdout.split()) == set()


def test_torchvision_hook_imports_nothing_of_the_package() -> None:
    """It is copied out of the package, and an environment that needs no repair must never run it."""
    hook = MODULES["doctor.torchvision_hook"]
    assert not [name for name, _ in imports_of(hook) if name.startswith("vlcp_ray")]
    assert "vlcp_ray.doctor.torchvision_hook" not in {name for file in FILES for name, _ in imports_of(file)}


def test_violations_finds_imports_that_go_up(tmp_path: Path) -> None:
    file = tmp_path / "encode.py"
    file.write_text(
        "from vlcp_ray import pipeline, seeds\ndef f():\n    from vlcp_ray.stages.finetune import trainer\n"
    )
    assert violations("stages.pair.encode", file) == [
        "stages.pair.encode -> pipeline",
        "stages.pair.encode -> stages.finetune.trainer",
    ]
    file.write_text("from vlcp_ray.models import teacher\ndef f():\n    from vlcp_ray.engine import tasks\n")
    assert violations("methods.rded", file) == ["methods.rded -> models.teacher", "methods.rded -> engine.tasks"]
