"""Compare the files of complete artifacts with the lists in their manifests, by size or by content."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from vlcp_ray.settings import ConfigError
from vlcp_ray.store import files, written
from vlcp_ray.store.artifact import MANIFEST, THREADS, Artifact, Manifest, Manifests, Step, Store
from vlcp_ray.store.files import File
from vlcp_ray.store.io import retry


@dataclass(frozen=True)
class Comparison:
    """The files of an artifact that are not as its manifest lists them, by name.

    Args:
        count: of the listed files; 0 in the manifests of versions that did not list files.
        surplus: files that the manifest does not list. They are never read.
    """

    title: str
    path: str
    count: int
    bytes: int
    missing: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    surplus: tuple[str, ...] = ()

    @property
    def is_damaged(self) -> bool:
        """Whether a listed file is missing or changed."""
        return bool(self.missing or self.changed)

    def lines(self) -> Iterator[str]:
        """Yield a line for each file that is not as listed."""
        for kind in ("missing", "changed", "surplus"):
            yield from (f"{kind:<8} {self.path}/{name}" for name in getattr(self, kind))


def compare_all(store: Store, steps: Sequence[Step], manifests: Manifests, *, contents: bool) -> Iterator[Comparison]:
    """Compare the complete artifacts among the steps, in their order.

    Args:
        contents: read every file and compare its SHA-256; otherwise only sizes are compared.
    """
    complete = [(step, manifest) for step in steps if (manifest := manifests.get(step.fingerprint))]
    with ThreadPoolExecutor(4 if contents else THREADS) as threads:
        yield from threads.map(lambda one: _compare(store.artifact(one[0]), one[0].title, one[1], contents), complete)


def check_sizes(store: Store, steps: Sequence[Step], manifests: Manifests) -> None:
    """Refuse complete artifacts with files that are missing or have another size than their manifest lists.

    Raises:
        ConfigError: names the artifacts' folders, the first files, and the fix.
    """
    damaged = [found for found in compare_all(store, steps, manifests, contents=False) if found.is_damaged]
    if damaged:
        folders = ", ".join(found.path for found in damaged)
        first = next(damaged[0].lines())
        count = sum(len(found.missing) + len(found.changed) for found in damaged)
        raise ConfigError(
            f"--root: {count} file{'s are' if count > 1 else ' is'} not as listed in the manifest ({first}): remove "
            f"{folders} and re-run the same command; vlcp-ray verify lists all such files"
        )


def _compare(artifact: Artifact, title: str, manifest: Manifest, contents: bool) -> Comparison:
    listed: Mapping[str, Mapping[str, object]] | None = manifest.get("files")
    if listed is None:
        return Comparison(title, artifact.path, 0, 0)
    start = len(artifact.path) + 1
    present = {file.path[start:]: file for file in artifact.files(recursive=True)}
    present.pop(MANIFEST, None)
    common = sorted(listed.keys() & present.keys())
    return Comparison(
        title,
        artifact.path,
        len(listed),
        sum(int(str(entry["bytes"])) for entry in listed.values()),
        missing=tuple(sorted(listed.keys() - present.keys())),
        changed=tuple(name for name in common if not _is_as_listed(artifact, present[name], listed[name], contents)),
        surplus=tuple(sorted(present.keys() - listed.keys())),
    )


def _is_as_listed(artifact: Artifact, file: File, entry: Mapping[str, object], contents: bool) -> bool:
    if file.size != entry["bytes"]:
        return False
    if not contents:
        return True
    measured = retry(lambda: written.measure(files.stream(artifact.filesystem, file)), f"read {file.path}")
    return measured.sha256 == entry["sha256"]
