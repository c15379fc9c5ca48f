"""Machines of a Ray cluster on this one, for tests."""

from typing import Any, Final

from ray._private.services import node_ip_address_from_perspective
from ray.cluster_utils import Cluster

#: This machine's address as Ray finds it. In a process with a local Ray, `ray.util.get_node_ip_address` returns the
#: local Ray's loopback address, at which Ray's own agents would not find a cluster.
ADDRESS: Final[str] = node_ip_address_from_perspective(None)


class Machines(Cluster):  # type: ignore[misc] # Ray has no types here
    """A cluster whose machines have this machine's address."""

    def add_node(self, **arguments: Any) -> Any:
        """Start a machine; the arguments are those of `ray start`."""
        return super().add_node(node_ip_address=ADDRESS, **arguments)
