"""Tests of the imports of diffusers: without the optional packages that nothing uses through it."""

import subprocess
import sys

import pytest

from vlcp_ray.models.optional_packages import UNUSED, without_optional_packages

MODULES = ("models.stable_diffusion", "models.dit", "models.mode_guidance", "stages.finetune.optimizer")

#: They can be imported afterwards, and transformers finds them where it uses them.
AFTERWARDS = """
import importlib.util, sys

unused = {unused}
importlib.import_module("vlcp_ray.{module}")
assert not set(unused) & set(sys.modules), sorted(set(unused) & set(sys.modules))
assert all(map(importlib.util.find_spec, unused))
from transformers.utils import is_bitsandbytes_available, is_peft_available

assert is_bitsandbytes_available() and is_peft_available()
import bitsandbytes.optim, peft, sklearn.cluster
"""


@pytest.mark.parametrize("module", MODULES)
def test_modules_import_diffusers_without_its_optional_packages(module: str) -> None:
    code = AFTERWARDS.format(unused=UNUSED, module=module)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_packages_that_were_imported_before_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", sys)  # as if it was imported
    monkeypatch.delitem(sys.modules, "sklearn", raising=False)
    with without_optional_packages():
        assert sys.modules["peft"] is sys
        with pytest.raises(ImportError, match="sklearn"):
            import sklearn  # noqa: F401
    assert sys.modules["peft"] is sys
    assert "sklearn" not in sys.modules
