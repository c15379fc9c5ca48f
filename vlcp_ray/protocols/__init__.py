"""The evaluation protocols: one file per protocol, this list of all of them, and the code that they share."""

from typing import Final

from vlcp_ray.protocols import minimax, rded, rded_stored
from vlcp_ray.protocols.protocol import Protocol

PROTOCOLS: Final[dict[str, Protocol]] = {
    protocol.name: protocol
    for protocol in (
        minimax.PROTOCOL,
        rded.PROTOCOL,
        rded_stored.PROTOCOL,
    )
}
