"""A run goes on with other devices than it began with."""

import shutil

import jax
import numpy as np
import pytest

from experiments import sft
from rlhf_jax.tracking import read_metrics


@pytest.mark.fault(13)
@pytest.mark.parametrize("devices", [2, 4])
def test_resumed_on_more_devices(toys, tmp_path, devices, monkeypatch):
    """20 more updates: the same rows in the same order, and the same losses."""
    seen: list[np.ndarray] = []
    shard = sft.shard

    def recorded(batch, devices):
        seen.append(np.asarray(jax.tree.leaves(batch)[0]))
        return shard(batch, devices)

    monkeypatch.setattr(sft, "shard", recorded)
    options = {"epochs": 20, "save_every": 20, "eval_every": 100}
    sft.main(toys.sft(tmp_path / "one", **options))
    began = seen[20:]
    seen.clear()
    shutil.copytree(tmp_path / "one", tmp_path / "more")
    shutil.rmtree(tmp_path / "more/checkpoints/40")
    more = toys.sft(tmp_path / "more", **options, devices=devices, resume=True)
    sft.main(more)
    assert len(seen) == len(began) > 20  # the held-out rows are the last
    for one, other in zip(began, seen, strict=True):
        np.testing.assert_array_equal(other, one)
    one, other = (
        read_metrics(tmp_path / f"{n}/metrics.jsonl") for n in ("one", "more")
    )
    assert [row["step"] for row in other] == list(range(1, 41))
    losses = [[row["sft/loss"] for row in rows[20:]] for rows in (one, other)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    assert losses[0][-1] < losses[0][0]  # it learns meanwhile
