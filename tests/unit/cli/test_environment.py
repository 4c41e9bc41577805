"""What the command line sets for libraries before it imports them."""

from __future__ import annotations

import os

import pytest

from pellucid.cli import main


@pytest.mark.parametrize(
    ("variable", "value"), [("HF_HUB_DISABLE_TELEMETRY", "1"), ("OMP_WAIT_POLICY", "PASSIVE")]
)
@pytest.mark.parametrize("given", [None, "0"])
def test_libraries_are_told_unless_the_operator_told_them(
    variable: str, value: str, given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, given or "")
    if given is None:
        monkeypatch.delenv(variable)
    monkeypatch.setattr("sys.argv", ["pellucid", "--version"])
    with pytest.raises(SystemExit):
        main()
    assert os.environ[variable] == (given or value)
