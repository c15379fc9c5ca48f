"""The Ray layer, without code of any stage: cluster, resources, streaming plans, tasks, job submission."""

from typing import Final

#: The variable that Ray sets for the driver of a submitted job.
JOB_MARK: Final = "RAY_JOB_CONFIG_JSON_ENV_VAR"
