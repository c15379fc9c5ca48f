"""The compared methods: one file per method, and this list of all of them."""

from typing import Final

from vlcp_ray.methods import (
    centroid,
    d4m,
    difficulty,
    full,
    herding,
    idc,
    k_center,
    minimax,
    mode_guidance,
    moderate,
    random_images,
    rded,
    sre2l,
    vlcp,
)
from vlcp_ray.methods.method import Method

#: In the order of the score table.
METHODS: Final[dict[str, Method]] = {
    method.name: method
    for method in (
        vlcp.METHOD,
        vlcp.WITHOUT_TEXT,
        vlcp.WITHOUT_TUNING,
        vlcp.WITHOUT_BOTH,
        d4m.METHOD,
        mode_guidance.METHOD,
        mode_guidance.WITH_TEXT,
        minimax.METHOD,
        centroid.METHOD,
        rded.METHOD,
        sre2l.METHOD,
        idc.IDC_1,
        idc.TILED,
        herding.METHOD,
        k_center.METHOD,
        moderate.METHOD,
        difficulty.EL2N,
        difficulty.FORGETTING,
        random_images.METHOD,
        full.METHOD,
    )
}
