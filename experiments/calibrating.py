"""calibration.json: is a reward model right, and as often as it says?"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.ends import ends, known
from experiments.inputs import Data
from rlhf_jax.evaluation import (
    Calibration,
    MarginBin,
    accuracy_by_margin,
    pair_accuracy,
    pair_calibration,
)
from rlhf_jax.feedback import Interval
from rlhf_jax.ops.personal import personal_score
from rlhf_jax.parallel import Where, data_parallel, shard, unshard
from rlhf_jax.rewards import sequence_scores
from rlhf_jax.rundir import save_json
from rlhf_jax.types import Array, Params, PreferenceBatch, ScoreFn, join_params

CALIBRATION = "calibration.json"


def write_held_out_calibration(
    run_dir: Path,
    step: Callable[[Any], tuple[Array, Array]],
    data: Data,
    batch_size: int,
) -> None:
    """On the pairs of all held-out judgements, or their labels.

    Args:
      run_dir: where it is written.
      step: `held_out_differences` of a batch.
      data: with the judgements.
      batch_size: judgements at a time.
    """
    examples = data.held_out.examples
    found = [step(batch) for batch in data.held_out_batches(batch_size)]
    differences, there = (
        np.concatenate([x[i] for x in found])[: len(examples)] for i in range(2)
    )
    numbers = {e.prompt: i for i, e in enumerate(examples)}
    groups = np.array([numbers[e.prompt] for e in examples])
    groups = np.broadcast_to(groups.reshape(-1, *[1] * (there.ndim - 1)), there.shape)
    summary = calibration_summary(differences[there], groups[there])
    save_json(run_dir / CALIBRATION, summary)


def make_held_out_differences(
    score_fn: ScoreFn, params: Params, frozen: Params | None, devices: Where
) -> Callable[[Any], tuple[Array, Array]]:
    """A function of a batch of judgements: see `held_out_differences`."""
    step = functools.partial(held_out_differences, score_fn=score_fn)
    step = data_parallel(step, devices, in_axes=(None, 0, None), out_axes=0)
    return lambda batch: unshard(step(params, shard(batch, devices), frozen))


def held_out_differences(
    params: Params,
    judged: Any,
    frozen: Params | None,
    *,
    score_fn: ScoreFn,
    axis_name: str | None = None,
) -> tuple[Array, Array]:
    """r(x, y₊) − r(x, y₋) and which of them there are, of one device's judgements.

    [B] of pairs, by the reward of who judged them where there are users; [B, K, K] of
    rankings and choices. Of labels, [B], the log-odds of the one that was given: good
    and bad are its two sides.
    """
    del axis_name
    params = join_params(frozen, params)
    outputs = functools.partial(sequence_scores, score_fn, params)
    if isinstance(judged, PreferenceBatch):
        score = functools.partial(_user_score, params, judged.annotator)
        lead = score(outputs(judged.chosen)) - score(outputs(judged.rejected))
        return lead, judged.weight > 0
    batch, given = judged
    if given.ndim == 1:
        bad, good = outputs(batch).T
        return jnp.where(given == 1, good - bad, bad - good), given >= 0
    scores = outputs(batch)[:, 0].reshape(given.shape)
    better = (given[:, :, None] < given[:, None, :]) & (given >= 0)[:, :, None]
    return scores[:, :, None] - scores[:, None, :], better


def _user_score(params: Params, annotator: Array, outputs: Array) -> Array:
    """[B] of [B, 1 + R]: the only output, or what the annotator makes of them."""
    pooled, features = outputs[:, 0], outputs[:, 1:]
    if not features.shape[1]:
        return pooled
    return personal_score(pooled, features, params["users"], annotator)


def calibration_summary(differences: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """What calibration.json has.

    Args:
      differences: [P] r(x, y₊) − r(x, y₋), or log-odds of labels.
      groups: [P], which prompt a pair is of.
    """
    found = pair_calibration(differences)
    accuracy = pair_accuracy(differences, groups)
    return {
        **_named(accuracy),
        "pairs": len(differences),
        **calibration_numbers(found),
        "margins": margin_rows(accuracy_by_margin(differences, groups)),
    }


def calibration_numbers(found: Calibration) -> dict[str, Any]:
    """Bins and errors as JSON has them; None is not known."""
    return {
        "bins": [
            {
                "low": b.low,
                "high": b.high,
                "predicted": known(b.predicted),
                "observed": known(b.observed),
                "count": b.size,
            }
            for b in found.bins
        ],
        "ece": known(found.ece),
        "ece_by_chance": known(found.ece_by_chance),
        "brier": known(found.brier),
    }


def margin_rows(bins: list[MarginBin]) -> list[dict[str, Any]]:
    """Accuracy by margin as JSON has it."""
    return [
        {
            "low": b.low,
            "high": b.high,
            **_named(b.accuracy),
            "count": b.size,
        }
        for b in bins
    ]


def _named(accuracy: Interval) -> dict[str, float | None]:
    found = ends(accuracy)
    return {"accuracy": found.pop("value")} | found
