"""Holds the floors of the house: who imports whom, who knows Ray, what loads at the start, how long files are."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vlcp_ray"
FILES = sorted(PACKAGE.rglob("*.py"))

# From the ground up; a room imports from the rows below its own. In DESIGN's words: 0, 0, 1, 1, 1, 2, 3, 3, 4, 5.
FLOORS = (
    {"settings", "schemas", "seeds", "memory", "filesystems", "torchvision_hook"},
    {"config", "progress"},
    {"scale", "repair", "schedule", "live", "trackers"},
    {"demo"},
    {"models", "images", "text", "augment", "scores", "published"},
    {"sources", "needs", "reference", "protocols", "methods", "page"},
    {"stages"},
    {"store"},
    {"lease", "exports", "logs", "records", "cost"},
    {"bench"},
    {"flow"},
    {"pipeline", "doctor"},
    {"arguments"},
    {"cli"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# Who may be imported from within the own room: the training of the demo's models is one program in several files, all
# layouts hand over the same rows of the same classes, all exports read rows in one order, a model's folder is what all
# models share, and the rest of flow stands on its context and its ways to run work. The protocols and the teacher
# share their images and their loop. The page's parts share its contents and its charts.
NEIGHBOURS = {
    ("demo", "*"),
    ("bench", "*"),
    ("cost", "*"),
    ("exports", "cards"),
    ("exports", "dataset"),
    ("exports", "rows"),
    ("exports", "soft_labels"),
    ("sources", "*"),
    ("page", "*"),
    ("models", "folders"),
    ("models", "shapes"),
    ("protocols", "images"),
    ("protocols", "pace"),
    ("protocols", "training"),
    *(
        ("flow", way)
        for way in (
            "choose",
            "classes",
            "cluster",
            "context",
            "data",
            "feeds",
            "labelled",
            "pictures",
            "rowwise",
            "sets",
            "storage",
            "tasks",
            "teach",
        )
    ),
}
KNOWS_RAY = {"flow", "pipeline", "cli"}
HEAVY = {"diffusers", "matplotlib", "pandas", "ray", "sklearn", "torch", "torchvision", "transformers", "vllm"}


def imported(file: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or later, as a full dotted name."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = file.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def room(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def rooms_of(file: Path) -> Iterator[tuple[str, str]]:
    """The rooms that a file imports from, each with the file in it, "" where the room is a file."""
    for name in imported(file):
        parts = name.split(".")
        if parts[0] == "vlcp_ray" and len(parts) > 1 and parts[1] != "__version__":
            yield parts[1], parts[2] if (PACKAGE / parts[1]).is_dir() and len(parts) > 2 else ""


def trespasses(file: Path) -> list[str]:
    """The imports of a file that go up or sideways."""
    here, found = room(file), []
    for there, target in rooms_of(file):
        neighbour = here == there and NEIGHBOURS & {(here, "*"), (here, target)}
        if not neighbour and FLOOR[there] >= FLOOR[here]:
            found.append(f"{here} -> {there} {target}".strip())
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_room_has_a_floor_and_imports_from_below_it(file: Path) -> None:
    if room(file) == "__init__":
        assert not list(rooms_of(file))
        return
    assert room(file) in FLOOR, f"{room(file)} is new: give it a floor in {Path(__file__).name}"
    assert trespasses(file) == []


def test_ray_is_known_in_three_rooms_only() -> None:
    users = {room(file) for file in FILES for name in imported(file) if name.split(".")[0] == "ray"}
    assert users <= KNOWS_RAY


@pytest.mark.parametrize("module", ["vlcp_ray", "vlcp_ray.cli"])
def test_nothing_heavy_is_imported_before_it_is_needed(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert HEAVY & set(done.stdout.split()) == set()


def test_the_torchvision_hook_stands_alone() -> None:
    """It is copied out of the package, and an environment that needs no hook must never run it."""
    hook = PACKAGE / "torchvision_hook.py"
    assert not list(rooms_of(hook))
    assert "torchvision_hook" not in {there for file in FILES for there, _ in rooms_of(file)}


def test_files_are_short_enough_to_be_read() -> None:
    files = [*FILES, *(ROOT / "tests").rglob("*.py")]
    lines = {str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert {name: count for name, count in lines.items() if count > 300} == {}


def test_a_trespass_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reading itself, on a house with one wrong import of each kind."""
    stages = tmp_path / "vlcp_ray" / "stages"
    stages.mkdir(parents=True)
    (stages / "pair.py").write_text(
        "from vlcp_ray import flow, seeds\nfrom .ingest import rows\ndef f():\n import ray.data\n"
    )
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path / "vlcp_ray")
    assert trespasses(stages / "pair.py") == ["stages -> flow", "stages -> stages ingest"]
    assert "ray" in {name.split(".")[0] for name in imported(stages / "pair.py")}
