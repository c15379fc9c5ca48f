"""Join the cluster that RAY_ADDRESS names, with one sentence for each thing that can be wrong with it."""

import os
import re
import shlex
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import grpc
import ray

from vlcp_ray import __version__
from vlcp_ray.engine.tasks import call_on_machines
from vlcp_ray.settings import ConfigError

#: What to do where a cluster refuses a client without its token.
AUTHENTICATION_FIX: Final = (
    "the cluster asks for a token: set RAY_AUTH_MODE=token here, and give the cluster's token in RAY_AUTH_TOKEN or "
    "RAY_AUTH_TOKEN_PATH unless it is in ~/.ray/auth_token"
)
_FIX: Final = "start one (ray start --head), name another, or unset RAY_ADDRESS to run locally"
#: The addresses that `ray.init` looks up by itself, and does not wait for.
_AUTO: Final = "auto"
_CONNECT_TIMEOUT: Final = 10.0  # seconds, for the port to open
_ANSWER_TIMEOUT: Final = 20.0  # seconds, for Ray to answer at the port


def join(address: str, options: Mapping[str, Any], *, check_environment: bool) -> None:
    """Connect to the cluster at RAY_ADDRESS.

    `ray.init` retries for ten minutes where nothing answers, so the port is tried first.

    Args:
        check_environment: check that the workers of every machine import this package.

    Raises:
        ConfigError: no Ray answers at the address, it refuses this process, or its workers run another environment.
    """
    _check_answers(address)
    try:
        ray.init(**options)
    except (ray.exceptions.RayError, OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"RAY_ADDRESS {address}: {_refusal(error)}") from error
    if check_environment:
        check_workers()


#: Ray's own errors, and the answer of its dashboard: `Request failed with status code 401: Unauthorized`.
_NO_TOKEN: Final = re.compile(r"AuthenticationError|InvalidAuthToken|Unauthorized|status( code)?:? 401\b")


def asks_for_token(error: BaseException) -> bool:
    """Return whether an error is that of a client without the cluster's token: Ray wraps it in other errors."""
    texts = [f"{type(one).__name__} {one}" for one in _chain(error)]
    return any(_NO_TOKEN.search(text) for text in texts)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _refusal(error: Exception) -> str:
    if asks_for_token(error):
        return AUTHENTICATION_FIX
    text = " ".join(str(error).split())
    if "was started with" in text:  # the versions of the cluster and of this process follow
        return f"{text}; use the same Python and Ray on all machines, or send the job with vlcp-ray submit"
    return f"cannot connect to Ray ({text}); {_FIX}"


def _check_answers(address: str) -> None:
    if address == _AUTO:
        return
    host, port = _parse(address)
    try:
        socket.create_connection((host, port), timeout=_CONNECT_TIMEOUT).close()
    except OSError as error:
        reason = (error.strerror or "no answer").lower()
        raise ConfigError(f"RAY_ADDRESS {address}: cannot connect to Ray ({reason}); {_FIX}") from error
    if not _is_grpc(host, port):
        raise ConfigError(
            f"RAY_ADDRESS {address}: cannot connect to Ray (something else listens there); give the port of the head, "
            f"6379 by default (8265 is its dashboard), or {_FIX}"
        )


def _parse(address: str) -> tuple[str, int]:
    """Split `HOST:PORT` or `ray://HOST:PORT`."""
    scheme, separator, rest = address.rpartition("://")
    if separator and scheme != "ray":
        where = "it is an address for vlcp-ray submit --address; " if scheme in ("http", "https") else ""
        raise ConfigError(f"RAY_ADDRESS {address}: {where}give HOST:PORT of the head, or unset it to run locally")
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname, parts.port
    except ValueError:  # the port is no number, or too large
        host, port = None, None
    if not host or not port or parts.path:
        raise ConfigError(f"RAY_ADDRESS {address}: give HOST:PORT of the head, or unset it to run locally")
    return host, port


def _is_grpc(host: str, port: int) -> bool:
    """Return whether a gRPC server listens, as Ray's do."""
    if os.environ.get("RAY_USE_TLS", "0") != "0":  # it answers only a client with its certificates
        return True
    with grpc.insecure_channel(f"[{host}]:{port}" if ":" in host else f"{host}:{port}") as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=_ANSWER_TIMEOUT)
        except grpc.FutureTimeoutError:
            return False
    return True


def check_workers() -> None:
    """Check that a worker of each machine imports this package, in this version.

    Raises:
        ConfigError: one does not: Ray was started there in another environment. Or Ray could not start the ranks of a
            training there: it writes the path of Python into a command of bash as it is.
    """
    for machine, (python, version) in call_on_machines(_find_package()):
        if version != __version__:
            has = f"have vlcp_ray {version}, not {__version__}," if version else "cannot import vlcp_ray"
            raise ConfigError(
                f"the workers on {machine} {has} (Ray runs {python} there): activate this project's environment before "
                "`ray start` on every machine, or send the job with vlcp-ray submit"
            )
        if shlex.quote(python) != python:
            raise ConfigError(
                f"the workers on {machine} run {python}, and Ray starts no training where this path has a space or "
                "another special character of the shell: move the environment to a folder without one"
            )


def _find_package() -> Callable[[], tuple[str, str]]:
    """Return a function of a worker that tells its Python and its version of this package, empty without it.

    Ray sends an inner function whole, and one of a module only by its name, which such a worker could not import.
    """

    def find() -> tuple[str, str]:
        import sys

        try:
            import vlcp_ray
        except ImportError:
            return sys.executable, ""
        return sys.executable, vlcp_ray.__version__

    return find
