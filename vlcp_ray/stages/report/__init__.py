"""report: everything that a job has made -> one self-contained HTML page."""

from typing import Final

from vlcp_ray.stages.stage import Stage

STAGE: Final = Stage("report", version=3, summary="everything -> one HTML page")
