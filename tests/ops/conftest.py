"""Oracles of the ops: float64 NumPy, plain loops, one entry at a time.

Each takes the arguments of its row in test_laws.py, and if the op stops a gradient,
``at``: the arguments at which to take the weights that have none.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from ops import preference_oracles
from ops.loops import each, lse, mean, softmax, variance
from ops.policy_oracles import POLICY_ORACLES


def token_logprobs(logits, tokens):
    def at(i):
        z = logits[i[0], i[1] - 1] / 0.7
        return z[tokens[i]] - lse(z) if i[1] else 0.0

    return each(at, tokens)


def token_entropy(logits):
    def at(i):
        p = softmax(logits[i[0], i[1] - 1] / 0.7)
        return -sum(v * np.log(v) for v in p) if i[1] else 0.0

    return each(at, shape=logits.shape[:2])


def fused(hidden, tokens):
    logits = hidden @ (np.eye(7) - 0.5 * np.eye(7, k=1))
    return token_logprobs(logits, tokens), token_entropy(logits)


def top_k(logits):
    keep = lambda i: sum(v > logits[i] for v in logits[i[:-1]]) < 3
    return each(lambda i: logits[i] if keep(i) else 0.0, logits)


def top_p(logits):
    def at(i):
        p = softmax(logits[i[:-1]])
        return logits[i] if sum(v for v in p if v > p[i[-1]]) < 0.6 else 0.0

    return each(at, logits)


def min_p(logits):
    def at(i):
        p = softmax(logits[i[:-1]])
        return logits[i] if p[i[-1]] >= 0.3 * max(p) else 0.0

    return each(at, logits)


def kl_estimate(logprobs, ref, mask, *, kind):
    def at(i):
        ratio = np.exp(ref[i] - logprobs[i])
        estimates = {
            "k1": -np.log(ratio),
            "k2": np.log(ratio) ** 2 / 2,
            "k3": ratio - 1 - np.log(ratio),
        }
        return estimates[kind] if mask[i] else 0.0

    return each(at, mask)


def kl_penalized_rewards(scores, logprobs, ref, mask):
    rewards = -0.3 * kl_estimate(logprobs, ref, mask, kind="k1")
    for b in range(len(mask)):
        owned = [t for t in range(mask.shape[1]) if mask[b, t]]
        if owned:
            rewards[b, owned[-1]] += scores[b]
    return rewards


def adaptive_kl(kl_coef, observed):
    error = min(max(observed / 6.0 - 1.0, -0.2), 0.2)
    return kl_coef * (1 + error * 64 / 1000)


def gae(rewards, values, mask):
    """By its definition as a double sum over the unmasked tokens."""
    gamma, lam = 0.9, 0.8
    advantages = np.zeros(mask.shape)
    for b in range(len(mask)):
        owned = [t for t in range(mask.shape[1]) if mask[b, t]]
        v = [values[b, t] for t in owned] + [0.0]
        deltas = [rewards[b, t] + gamma * v[i + 1] - v[i] for i, t in enumerate(owned)]
        for i, t in enumerate(owned):
            terms = enumerate(deltas[i:])
            advantages[b, t] = sum((gamma * lam) ** n * delta for n, delta in terms)
    return advantages, np.where(mask, advantages + np.where(mask, values, 0), 0)


def value_loss(values, old, returns, mask, *, eps):
    def at(i):
        near = min(max(values[i], old[i] - eps), old[i] + eps)
        losses = (values[i] - returns[i]) ** 2 / 2, (near - returns[i]) ** 2 / 2
        return (max(losses), float(losses[1] > losses[0])) if mask[i] else (0.0, 0.0)

    terms, clipped = each(lambda i: at(i)[0], mask), each(lambda i: at(i)[1], mask)
    owned = [i for i in np.ndindex(*mask.shape) if mask[i]]
    return terms, {
        "value/loss": mean(terms[i] for i in owned),
        "value/clip_fraction": mean(clipped[i] for i in owned),
        "value/mean": mean(values[i] for i in owned),
        "value/error": mean((values[i] - returns[i]) ** 2 for i in owned),
    }


def explained_variance(values, returns, mask):
    v, r = values[mask], returns[mask]
    return 1 - variance(r - v) / variance(r)


def supervised(logprobs, mask):
    terms = each(lambda i: -logprobs[i] if mask[i] else 0.0, mask)
    return terms, {"sft/loss": mean(-x for x in logprobs[mask])}


def pairwise(chosen, rejected, margin):
    loss = lambda i: -np.log(1 / (1 + np.exp(margin[i] + rejected[i] - chosen[i])))
    return each(loss, chosen)


def ranking(scores, ranks):
    def at(b):
        s, r = scores[b], ranks[b]
        present = [i for i in range(len(r)) if r[i] >= 0]
        rivals = lambda i: [s[j] for j in present if r[j] >= r[i]]
        return sum(lse(rivals(i)) - s[i] for i in present)

    return np.array([at(b) for b in range(len(scores))])


def choice(scores, index):
    return np.array([lse(s) - s[i] for s, i in zip(scores, index, strict=True)])


def process(scores, labels, mask):
    def at(i):
        p = 1 / (1 + np.exp(-scores[i]))
        terms = -labels[i] * np.log(p) - (1 - labels[i]) * np.log(1 - p)
        return terms if mask[i] else 0.0

    return each(at, mask)


def ensemble(scores, *, deviation=0.0, spread=0.0):
    """Scores [B, M]."""
    rows = [(mean(s), variance(s)) for s in scores]
    return np.array([m - deviation * np.sqrt(v) - spread * v for m, v in rows])


def whiten(x, mask, *, shift_mean):
    mu, sigma = mean(x[mask]), np.sqrt(variance(x[mask]) + 1e-8)
    back = 0.0 if shift_mean else mu
    return each(lambda i: (x[i] - mu) / sigma + back if mask[i] else 0.0, x)


def select_last(x, mask):
    owned = lambda b: [x[b, t] for t in range(x.shape[1]) if mask[b, t]]
    return np.array([([0.0] + owned(b))[-1] for b in range(len(x))])


def align(x):
    return each(lambda i: x[i[0], i[1] - 1] if i[1] else 0.0, x)


def personal(pooled, features, who):
    def at(i):
        own = features[i].shape[0] * [0.0]
        if who[i] >= 0:
            own = [np.cos(who[i] * len(own) + k) for k in range(len(own))]
        return pooled[i] + sum(w * f for w, f in zip(own, features[i], strict=True))

    return each(at, pooled)


def repetition(x, mask, *, ngram, above):
    def at(row, owned):
        starts = range(len(row) - ngram + 1)
        whole = [i for i in starts if all(owned[i : i + ngram])]
        grams = [tuple(v > above for v in row[i : i + ngram]) for i in whole]
        return 1 - len(set(grams)) / len(grams) if grams else 0.0

    return np.array([at(*pair) for pair in zip(x, mask, strict=True)])


ORACLES: dict[str, Callable[..., Any]] = {
    "masked_sum": lambda x, mask: (sum(x[mask]), len(x[mask])),
    "masked_mean": lambda x, mask: mean(x[mask]),
    "masked_whiten": partial(whiten, shift_mean=True),
    "masked_whiten[keep mean]": partial(whiten, shift_mean=False),
    "select_last": select_last,
    "align_to_tokens": align,
    "token_logprobs": token_logprobs,
    "fused_token_logprobs": fused,
    "token_entropy": token_entropy,
    "scale_by_temperature": lambda logits: logits / 0.7,
    "top_k_mask": top_k,
    "top_p_mask": top_p,
    "min_p_mask": min_p,
    "kl_estimate[k1]": partial(kl_estimate, kind="k1"),
    "kl_estimate[k2]": partial(kl_estimate, kind="k2"),
    "kl_estimate[k3]": partial(kl_estimate, kind="k3"),
    "kl_penalized_rewards": kl_penalized_rewards,
    "adaptive_kl_update": adaptive_kl,
    "gae_advantages": gae,
    "value_loss": partial(value_loss, eps=0.2),
    "value_loss[no clip]": partial(value_loss, eps=np.inf),
    "explained_variance": explained_variance,
    "supervised_loss": supervised,
    "pairwise_reward_loss": pairwise,
    "ranking_reward_loss": ranking,
    "choice_reward_loss": choice,
    "binary_reward_loss": choice,
    "binary_reward[logit]": lambda logits: logits[:, 1],
    "binary_reward[probability]": lambda logits: np.array(
        [softmax(z)[1] for z in logits]
    ),
    "label_reward[logit]": lambda logits: logits[:, 0],
    "label_reward[probability]": lambda logits: np.array(
        [softmax(z)[2] for z in logits]
    ),
    "centering_loss": lambda c, r: each(lambda i: 0.3 * (c[i] + r[i]) ** 2, c),
    "personal_score": personal,
    "personal_score[unknown]": lambda f, who: personal(np.zeros(len(f)), f, who),
    "regression_reward_loss": lambda s, y: each(lambda i: (s[i] - y[i]) ** 2, s),
    "process_reward_loss": process,
    "ensemble_reward[mean]": ensemble,
    "ensemble_reward[minimum]": lambda scores: np.array([min(s) for s in scores]),
    "ensemble_reward[std]": partial(ensemble, deviation=0.5),
    "ensemble_reward[variance]": partial(ensemble, spread=0.5),
    "ensemble_disagreement": lambda scores: np.array(
        [np.sqrt(variance(s)) for s in scores]
    ),
    "repetition": partial(repetition, ngram=2, above=0.0),
    "repetition[1]": partial(repetition, ngram=1, above=0.5),
    "pairwise_accuracy": lambda c, r: each(lambda i: float(c[i] > r[i]), c),
    **POLICY_ORACLES,
    **preference_oracles.oracles(),
}


@pytest.fixture(params=ORACLES)
def oracle(request) -> tuple[str, Callable[..., Any]]:
    """Every op in turn: (name of its row in test_laws.py, oracle)."""
    return request.param, ORACLES[request.param]
