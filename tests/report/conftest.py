"""Runs that were never made, and their pages."""

from pathlib import Path

import pytest
from report.made import LONG, write_run

from rlhf_jax.report import write_page


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    """Two runs; the page of the first is in it, that of both beside them."""
    root = tmp_path_factory.mktemp("runs")
    for name, coef in (("ppo", 0.1), (LONG, 0.02)):
        write_run(root / name, coef=coef)
    write_page([root / "ppo"])
    write_page([root / "ppo", root / LONG], root / "both.html")
    return root


@pytest.fixture(scope="session")
def page(root) -> str:
    return (root / "ppo/report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def both(root) -> str:
    return (root / "both.html").read_text(encoding="utf-8")
