"""Tokens are drawn from the distribution that they are said to be drawn from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling.scripted import constant, prompts_of, sample

from rlhf_jax.sampling import SamplingConfig, generate
from rlhf_jax.types import ModelOutput

PROBS = np.array([0.05, 0.4, 0.1, 0.3, 0.15])
# The sixth token is one that the policy itself excludes.
LOGITS = np.append(np.log(PROBS), -np.inf).astype(np.float32)
# P(χ² > bound) = 1e-4, by degrees of freedom (kept tokens − 1).
BOUND = {1: 15.14, 2: 18.42, 3: 21.11, 4: 23.51}


def _draw(config, rows=4096, key=1):
    return sample(
        constant,
        jnp.asarray(LOGITS),
        prompts_of([[1]] * rows),
        key=jax.random.key(key),
        config=config,
    )


def _chi_square(tokens, probs):
    """Σ (observed − expected)² / expected over the tokens of positive probability."""
    counts = np.bincount(np.asarray(tokens).ravel(), minlength=probs.size)
    assert counts[probs == 0].sum() == 0
    expected = tokens.size * probs[probs > 0]
    return float(((counts[probs > 0] - expected) ** 2 / expected).sum())


def _power(probs, temperature):
    scaled = probs ** (1 / temperature)
    return np.append(scaled / scaled.sum(), 0.0)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_frequencies(temperature):
    rollout = _draw(SamplingConfig(max_new_tokens=4, temperature=temperature))
    tokens = rollout.batch.tokens[:, 1:]
    assert _chi_square(tokens, _power(PROBS, temperature)) < BOUND[4]
    other = 1.7 - temperature
    assert _chi_square(tokens, _power(PROBS, other)) > 10 * BOUND[4]  # it can fail
    expected = np.log(np.maximum(_power(PROBS, temperature), 1e-30))[tokens]
    np.testing.assert_allclose(rollout.logprobs[:, 1:], expected, atol=1e-6)


@pytest.mark.parametrize(
    "options, kept",
    [
        ({"top_k": 2}, [1, 3]),
        ({"top_p": 0.75}, [1, 3, 4]),  # 0.4 + 0.3 < 0.75
        ({"min_p": 0.2}, [1, 2, 3, 4]),  # 0.2 · 0.4 = 0.08
        ({"top_k": 4, "top_p": 0.9, "min_p": 0.5}, [1, 3]),
        # Renormalised over four, the first three hold 0.85/0.95 = 0.89 < 0.92.
        ({"top_k": 4, "top_p": 0.92}, [1, 2, 3, 4]),
        ({"top_p": 0.92}, [1, 2, 3, 4]),  # 0.85 < 0.92
        ({"top_k": 3, "top_p": 0.8}, [1, 3]),  # 0.7/0.85 = 0.82 reaches 0.8
    ],
)
def test_truncated_distributions(options, kept):
    rollout = _draw(SamplingConfig(max_new_tokens=4, **options))
    tokens = np.asarray(rollout.batch.tokens[:, 1:])
    probs = np.where(np.isin(np.arange(6), kept), np.append(PROBS, 0.0), 0.0)
    assert _chi_square(tokens, probs / probs.sum()) < BOUND[len(kept) - 1]
    # Log-probs are those of the whole distribution, not of the truncated one.
    np.testing.assert_allclose(
        rollout.logprobs[:, 1:], np.log(PROBS)[tokens], atol=1e-6
    )


def test_temperature_comes_before_truncation():
    """At τ = 0.5 tokens 1 and 3 hold (16 + 9) / 28.5 = 0.88, at τ = 1 only 0.7."""
    config = SamplingConfig(max_new_tokens=4, temperature=0.5, top_p=0.85)
    tokens = _draw(config).batch.tokens[:, 1:]
    assert set(np.unique(tokens)) == {1, 3}


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2.0**-23])
def test_the_ends_of_the_uniform_interval(monkeypatch, key, uniform):
    """Sums of 5,000 probabilities round: no end may reach an excluded token.

    By inverse CDF the least number draws the first kept token; the greatest one of the
    last, whose probabilities are within the rounding of the sum.
    """
    monkeypatch.setattr(jax.random, "uniform", lambda key: jnp.float32(uniform))
    logits = 3 * jax.random.normal(key, (256, 5000))
    excluded = jax.random.bernoulli(jax.random.key(2), 0.9, logits.shape)
    logits = jnp.where(excluded.at[:, 0].set(True), -jnp.inf, logits)

    def apply_fn(params, batch, *, cache=None, cache_size=None):
        width = batch.tokens.shape[1]
        return ModelOutput(jnp.repeat(params[:, None], width, axis=1), cache=())

    config = SamplingConfig(max_new_tokens=1)
    rollout = generate(
        apply_fn, logits, prompts_of([[1]] * 256), key=key, config=config
    )
    kept = np.isfinite(np.asarray(logits))
    drawn = np.asarray(rollout.batch.tokens[:, 1])
    assert kept[np.arange(256), drawn].all()
    if uniform == 0:
        np.testing.assert_array_equal(drawn, kept.argmax(axis=1))
    else:
        probs = np.exp(np.asarray(jax.nn.log_softmax(logits), np.float64))
        after = (probs * (np.arange(5000) > drawn[:, None])).sum(axis=1)
        assert after.max() < 1e-5


def test_key_of_each_token(key):
    """Token t of global row r: inverse CDF at uniform(fold_in(fold_in(key, r), t))."""
    rows = [5, 0, 1_000_000]
    rollout = sample(
        constant,
        jnp.asarray(LOGITS),
        prompts_of([[1, 1]] * 3),
        key=key,
        config=SamplingConfig(max_new_tokens=5),
        rows=jnp.array(rows, jnp.int32),
    )
    assert rollout.row.tolist() == rows
    for b, row in enumerate(rows):
        for t in range(5):
            step_key = jax.random.fold_in(jax.random.fold_in(key, row), t)
            u = float(jax.random.uniform(step_key))
            expected = int(np.searchsorted(np.cumsum(PROBS), u, side="right"))
            assert rollout.batch.tokens[b, 2 + t] == expected


def test_other_keys_and_other_rows_draw_other_tokens():
    config = SamplingConfig(max_new_tokens=32)
    first, second = (_draw(config, rows=8, key=k).batch.tokens[:, 1:] for k in (1, 2))
    rows = np.concatenate([first, second]).tolist()
    assert len({tuple(row) for row in rows}) == 16
    again = _draw(config, rows=8, key=1).batch.tokens[:, 1:]
    np.testing.assert_array_equal(again, first)
