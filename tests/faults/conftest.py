"""Stages that runs start from, and runs that nothing stopped, made once."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import stages
from stage_toys import Toys


class Whole:
    """What each stage comes to when nobody stops it."""

    def __init__(self, root: Path):
        self.context, self.root = stages.context(), root
        self._found: dict[str, stages.Outcome] = {}

    def start(self, stage: str, run_dir: Path, **changes) -> stages.Script:
        return stages.Script(self.context, self.root, stage, run_dir, **changes)

    def outcome(self, stage: str) -> stages.Outcome:
        if stage not in self._found:
            run_dir = self.root / f"whole-{stage}"
            assert self.start(stage, run_dir).wait() == 0
            self._found[stage] = stages.outcome(run_dir)
        return self._found[stage]


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Iterator[Whole]:
    root = tmp_path_factory.mktemp("faults")
    Toys(root).make()
    tests = Path(__file__).parents[1]
    with pytest.MonkeyPatch.context() as patch:  # for the processes that runs are
        patch.setenv("PYTHONPATH", f"{tests.parent}{os.pathsep}{tests}")
        yield Whole(root)
