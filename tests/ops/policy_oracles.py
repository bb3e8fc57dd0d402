"""Oracles of what algorithms of policy optimisation are made of, see conftest.py."""

from collections.abc import Callable
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
from ops.loops import each, mean, softmax


def returns(rewards, mask):
    def at(i):
        later = [t for t in range(i[1], mask.shape[1]) if mask[i[0], t]]
        return sum(0.9**n * rewards[i[0], t] for n, t in enumerate(later))

    return each(lambda i: at(i) if mask[i] else 0.0, mask)


def same_sequence(i, segment_ids, mask):
    """Unmasked tokens of the sequence of token i."""
    row, same = i[0], lambda t: segment_ids[i[0], t] == segment_ids[i]
    return [(row, t) for t in range(mask.shape[1]) if mask[row, t] and same(t)]


def over_sequence(x, segment_ids, mask, *, of):
    values = lambda i: [x[j] for j in same_sequence(i, segment_ids, mask)]
    return each(lambda i: of(values(i)) if mask[i] else 0.0, mask)


def loss_weights(x, segment_ids, mask, *, kind):
    def at(i):
        length = len(same_sequence(i, segment_ids, mask))
        weight = {"token": 1, "sequence": 1 / max(length, 1), "constant": 1 / 4}[kind]
        return x[i] * weight if mask[i] else 0.0

    owned = [i for i in np.ndindex(*mask.shape) if mask[i]]
    sequences = {(i[0], segment_ids[i]) for i in owned}
    return each(at, mask), len(owned if kind == "token" else sequences)


def ratio_metrics(logprobs, old, mask):
    owned = [i for i in np.ndindex(*mask.shape) if mask[i]]
    return {
        "policy/approx_kl": mean((logprobs[i] - old[i]) ** 2 / 2 for i in owned),
        "policy/ratio": mean(np.exp(logprobs[i] - old[i]) for i in owned),
        "policy/ratio_max": max(np.exp(logprobs[i] - old[i]) for i in owned),
    }


def policy_gradient(logprobs, advantages, mask):
    terms = each(lambda i: -advantages[i] * logprobs[i] if mask[i] else 0.0, mask)
    return terms, {"policy/loss": mean(terms[mask])}


def ppo(logprobs, old, advantages, mask, *, low=0.8, high=1.2, dual=np.inf):
    ratio = each(lambda i: np.exp(logprobs[i] - old[i]) if mask[i] else 0, mask)

    def at(i):
        clipped = min(max(ratio[i], low), high)
        objective = min(ratio[i] * advantages[i], clipped * advantages[i])
        if advantages[i] < 0:
            objective = max(objective, dual * advantages[i])
        return -objective if mask[i] else 0.0

    terms = each(at, mask)
    owned = [i for i in np.ndindex(*mask.shape) if mask[i]]
    lows = [ratio[i] < low and advantages[i] < 0 for i in owned]
    highs = [ratio[i] > high and advantages[i] > 0 for i in owned]
    duals = [ratio[i] > dual and advantages[i] < 0 for i in owned]
    return terms, {
        "policy/loss": mean(terms[i] for i in owned),
        "policy/clip_fraction": mean(map(float, lows + highs)) * 2,
        "policy/clip_fraction_low": mean(map(float, lows)),
        "policy/clip_fraction_high": mean(map(float, highs)),
        "policy/clip_fraction_dual": mean(map(float, duals)),
    } | ratio_metrics(logprobs, old, mask)


def gspo(logprobs, old, advantages, segment_ids, mask):
    log_ratio = over_sequence(logprobs - old, segment_ids, mask, of=mean)
    return ppo(log_ratio, 0 * old, advantages, mask, low=0.8, high=1.3)


def cispo(logprobs, old, advantages, mask, at=None):
    fixed, fixed_old = (logprobs, old) if at is None else at[:2]
    ratio = each(lambda i: np.exp(fixed[i] - fixed_old[i]) if mask[i] else 0, mask)
    weight = lambda i: min(max(ratio[i], 0.5), 1.5)
    term = lambda i: -weight(i) * advantages[i] * logprobs[i] if mask[i] else 0.0
    terms = each(term, mask)
    return terms, {
        "policy/loss": mean(terms[mask]),
        "policy/clip_fraction": mean(float(r < 0.5 or r > 1.5) for r in ratio[mask]),
        "policy/clip_fraction_low": mean(float(r < 0.5) for r in ratio[mask]),
        "policy/clip_fraction_high": mean(float(r > 1.5) for r in ratio[mask]),
    } | ratio_metrics(logprobs, old, mask)


def importance(logprobs, sampler, segment_ids, mask, at=None, *, kind, level):
    logprobs, sampler = (logprobs, sampler) if at is None else at[:2]
    apart = logprobs - sampler
    if level == "sequence":
        apart = over_sequence(apart, segment_ids, mask, of=sum)

    def weight(i):
        ratio = float(np.exp(apart[i]))
        return min(ratio, 2.0) if kind == "truncate" or ratio <= 2.0 else 0.0

    return each(lambda i: weight(i) if mask[i] else 0.0, mask)


def distillation(student, teacher, mask, *, beta):
    kl = lambda p, q: float(sum(p * np.log(p / q)))

    def at(i):
        before = i[0], i[1] - 1
        p, q = softmax(teacher[before] / 0.7), softmax(student[before] / 0.7)
        m = beta * p + (1 - beta) * q
        if beta in (0, 1):
            return kl(q, p) if beta else kl(p, q)
        return beta * kl(p, m) + (1 - beta) * kl(q, m)

    return each(lambda i: float(at(i)) if mask[i] and i[1] else 0.0, mask)


def expected_best(scores, gold=None, *, k):
    worth = scores if gold is None else gold
    some = combinations(range(len(scores)), k)
    return mean(worth[max(rows, key=lambda i: scores[i])] for rows in some)


POLICY_ORACLES: dict[str, Callable[..., Any]] = {
    "segment_sum": partial(over_sequence, of=sum),
    "segment_mean": partial(over_sequence, of=mean),
    "segment_mean[row]": lambda x, m: over_sequence(x, 0 * m, m, of=mean),
    "loss_weights[token]": partial(loss_weights, kind="token"),
    "loss_weights[sequence]": partial(loss_weights, kind="sequence"),
    "loss_weights[constant]": partial(loss_weights, kind="constant"),
    "discounted_returns": returns,
    "remax_advantages": lambda s, greedy: each(lambda i: s[i] - greedy[i], s),
    "overlong_penalty": lambda n: each(
        lambda i: 0.0 if n[i] <= 6 else -1.0 if n[i] > 10 else (6 - n[i]) / 4, n
    ),
    "informative_groups": lambda s: np.full(len(s), float(len(set(s)) > 1)),
    "best_of_n": max,
    "best_of_n_kl": lambda n: each(lambda i: np.log(n[i]) - 1 + 1 / n[i], n),
    "expected_best_of": partial(expected_best, k=3),
    "expected_best_of[gold]": partial(expected_best, k=3),
    "policy_gradient_loss": policy_gradient,
    "ratio_metrics": lambda *args: (0.0, ratio_metrics(*args)),
    "ppo_loss": ppo,
    "ppo_loss[high, dual]": partial(ppo, high=1.5, dual=1.7),
    "gspo_loss": gspo,
    "cispo_loss": cispo,
    **{
        f"importance_weights[{kind}, {level}]": partial(
            importance, kind=kind, level=level
        )
        for kind in ("truncate", "mask")
        for level in ("token", "sequence")
    },
    "distillation_loss[forward]": partial(distillation, beta=0.0),
    "distillation_loss[js]": partial(distillation, beta=0.3),
    "distillation_loss[reverse]": partial(distillation, beta=1.0),
}
