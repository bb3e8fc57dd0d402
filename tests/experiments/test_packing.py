"""Rows that pairs or episodes share: the same update, of less padding."""

import pytest

from experiments import policy, reward_model, rollouts
from experiments.judgements import JUDGEMENTS, read_judgements
from rlhf_jax.optim import OptimConfig
from rlhf_jax.tracking import read_metrics

# Without warm-up, and an ε that keeps Adam from making rounding errors large.
SMOOTH = OptimConfig(learning_rate=0.1, schedule="constant", eps=1e-2)


def _first(run_dir):
    return read_metrics(run_dir / "metrics.jsonl")[0]


def test_packed_pairs_make_the_same_update(toys, tmp_path):
    """All 24 pairs in one update, in rows of their own and in shared ones."""
    changes = {"optim": SMOOTH, "epochs": 1}
    config = toys.reward(tmp_path / "packed", pack_length=128, **changes)
    data = read_judgements(config, JUDGEMENTS["pairwise"], config.model).data
    assert len(data.rows) < len(data.learned.examples) == 24
    packed = toys.reward(
        tmp_path / "packed", pack_length=128, batch_size=len(data.rows), **changes
    )
    alone = toys.reward(tmp_path / "alone", batch_size=24, **changes)
    found, expected = reward_model.main(packed), reward_model.main(alone)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
    found, expected = _first(tmp_path / "packed"), _first(tmp_path / "alone")
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_packed_episodes_make_the_same_update(toys, tmp_path, monkeypatch):
    rows, pack_experience = [], rollouts.pack_experience

    def spy(*args, **kwargs):
        packed = pack_experience(*args, **kwargs)
        rows.append(packed.rewards.shape)
        return packed

    monkeypatch.setattr(rollouts, "pack_experience", spy)
    policy.main(toys.policy(tmp_path / "alone", optim=SMOOTH))
    assert not rows
    policy.main(toys.policy(tmp_path / "packed", optim=SMOOTH, pack_length=128))
    assert len(rows) == 2  # iterations, of 8 episodes each
    assert all(count < 8 and width == 128 for count, width in rows)
    found, expected = _first(tmp_path / "packed"), _first(tmp_path / "alone")
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
