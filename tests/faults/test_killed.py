"""A run that was killed anywhere goes on to the same bytes."""

import signal
import time

import numpy as np
import pytest
from faults import stages
from faults.repeat import repeats

KILLS = max(1, repeats(10) // len(stages.MAINS))


@pytest.mark.slow
@pytest.mark.fault(1)
@pytest.mark.parametrize("stage", stages.MAINS)
def test_killed_anywhere(whole, tmp_path, stage):
    """SIGKILL at random moments, again and again, until it is through."""
    want, run_dir = whole.outcome(stage), tmp_path / "run"
    rng = np.random.default_rng(list(stages.MAINS).index(stage))
    for number in range(KILLS):
        run_dir = tmp_path / str(number)
        target, delay = int(rng.integers(stages.UPDATES)), rng.uniform(0, 0.15)
        script = whole.start(stage, run_dir)
        stages.wait_for_step(script, run_dir, target)
        time.sleep(delay)
        script.signal(signal.SIGKILL)
        killed = script.wait() == -signal.SIGKILL
        done = stages.steps_logged(run_dir)
        saved = stages.checkpoint.latest_step(run_dir / "checkpoints") or 0
        # One checkpoint may be under way while the next steps are made.
        assert done - saved <= 2 * stages.SAVE_EVERY
        assert whole.start(stage, run_dir, resume=True).wait() == 0
        assert stages.outcome(run_dir) == want
        assert stages.leftovers(run_dir) == []
        print(f"{stage}: killed {killed} after step {done}, {saved} saved")
