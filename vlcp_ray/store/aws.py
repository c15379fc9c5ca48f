"""Read AWS credentials from a profile, as the AWS tools do: obstore reads the environment and the roles of machines."""

import configparser
import os
from pathlib import Path
from typing import Final

from vlcp_ray.settings import ConfigError

_FILES: Final = (("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials"), ("AWS_CONFIG_FILE", ".aws/config"))
_KEYS: Final = {
    "aws_access_key_id": "access_key_id",
    "aws_secret_access_key": "secret_access_key",
    "aws_session_token": "session_token",
}


def profile_keys() -> dict[str, str]:
    """Return the keys of the profile AWS_PROFILE, or of the default profile; none where the environment has keys.

    Raises:
        ConfigError: a file cannot be read, or the profile is named and has no keys of its own: it signs in or takes a
            role.
    """
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        return {}
    named = os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE")
    for variable, default in _FILES:
        file = Path(os.environ.get(variable) or Path.home() / default).expanduser()
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read(file)
        except (configparser.Error, UnicodeDecodeError):  # not chained: the error shows lines of the file
            raise ConfigError(
                f"{file}: it is no file of AWS profiles; correct it, or name another in {variable}"
            ) from None
        for section in (named or "default", f"profile {named or 'default'}"):
            if parser.has_option(section, "aws_access_key_id"):
                return {ours: parser[section][theirs] for theirs, ours in _KEYS.items() if theirs in parser[section]}
    if named:
        raise ConfigError(
            f"AWS_PROFILE {named}: the profile has no keys of its own; export those of a session into the environment: "
            f"eval $(aws configure export-credentials --profile {named} --format env)"
        )
    return {}
