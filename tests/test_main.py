"""Tests of `python -m vlcp_ray`: what is said where the command line cannot be imported."""

import sys

import pytest

from vlcp_ray.__main__ import main


def test_main_without_a_package_names_it_and_the_fix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import vlcp_ray

    monkeypatch.delitem(sys.modules, "vlcp_ray.cli", raising=False)
    monkeypatch.delattr(vlcp_ray, "cli", raising=False)
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main() == 2
    assert "the package shtab is not installed" in (said := capsys.readouterr().err)
    assert "make setup" in said
    assert len(said.splitlines()) == 1
