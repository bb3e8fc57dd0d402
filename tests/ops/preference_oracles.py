"""Options of the preference losses under test, and their oracles: float64 loops.

Log σ is written out of probabilities and divergences out of ratios, as in the papers;
rank k of a batch is looked up in a sorted list.
"""

from typing import Any

import numpy as np

BETA = 0.7
PREFERENCES: dict[str, dict[str, Any]] = {
    "dpo": {"kind": "dpo"},
    "cdpo": {"kind": "dpo", "label_smoothing": 0.2},
    "ipo": {"kind": "ipo"},
    "hinge": {"kind": "hinge"},
    "robust": {"kind": "robust", "label_smoothing": 0.2},
    "exo": {"kind": "exo"},
    "exo, smoother": {"kind": "exo", "label_smoothing": 0.2},
    "discopop": {"kind": "discopop"},
    "discopop, smoother": {"kind": "discopop", "tau": 0.5},
    "nca": {"kind": "nca"},
    "sppo": {"kind": "sppo"},
    "apo_zero": {"kind": "apo_zero"},
    "apo_down": {"kind": "apo_down"},
    "aot": {"kind": "aot", "label_smoothing": 0.2},
    "aot_unpaired": {"kind": "aot_unpaired"},
    "dpo, forward": {"kind": "dpo", "divergence": "forward_kl"},
    "dpo, js": {"kind": "dpo", "divergence": "js"},
    "dpo, alpha": {"kind": "dpo", "divergence": "alpha", "alpha": 0.3},
    "ipo, js": {"kind": "ipo", "divergence": "js"},
    "hinge, forward": {"kind": "hinge", "divergence": "forward_kl"},
    "robust, js": {"kind": "robust", "divergence": "js"},
    "exo, alpha": {"kind": "exo", "divergence": "alpha"},
    "discopop, alpha": {"kind": "discopop", "tau": 0.5, "divergence": "alpha"},
}
REFERENCE_FREE: dict[str, dict[str, Any]] = {
    "simpo": {"kind": "simpo", "gamma": 0.3},
    "cpo": {"kind": "cpo"},
    "cpo_hinge": {"kind": "cpo_hinge"},
    "orpo": {"kind": "orpo"},
}
UNPAIRED: dict[str, dict[str, Any]] = {
    "kto": {"kind": "kto", "baseline": 0.4, "desirable_weight": 1.3},
    "kto, negative": {"kind": "kto", "baseline": -0.4, "undesirable_weight": 0.6},
    "bco": {"kind": "bco", "baseline": -0.4},
    "apo_zero": {"kind": "apo_zero", "undesirable_weight": 0.6},
}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def of_kind(kind, c, r, eps, tau, beta):
    """The loss of one pair with scores c and r."""
    win = sigmoid(beta * (c - r))
    match kind:
        case "dpo" | "aot" | "aot_unpaired":
            return -(1 - eps) * np.log(win) - eps * np.log(1 - win)
        case "ipo":
            return (c - r - 1 / (2 * beta)) ** 2
        case "hinge":
            return max(0.0, 1 - beta * (c - r))
        case "robust":
            clean, flipped = -np.log(win), -np.log(1 - win)
            return ((1 - eps) * clean - eps * flipped) / (1 - 2 * eps)
        case "exo":
            pairs = (win, 1 - eps), (1 - win, eps)
            return sum(q * np.log(q / p) for q, p in pairs)
        case "discopop":
            m = sigmoid(beta * (c - r) / tau)
            return (1 - m) * -np.log(win) + m * np.exp(-beta * (c - r))
        case "nca":
            good, bad = sigmoid(beta * c), sigmoid(beta * r)
            return -np.log(good) - np.log(1 - good) / 2 - np.log(1 - bad) / 2
        case "sppo":
            return (c - 1 / (2 * beta)) ** 2 + (r + 1 / (2 * beta)) ** 2
        case "apo_zero":
            return (1 - sigmoid(beta * c)) + sigmoid(beta * r)
        case "apo_down":
            return sigmoid(beta * c) + (1 - win)


def derivative(divergence, alpha, t):
    """f′(t) of the f-divergence."""
    match divergence:
        case "reverse_kl":
            return np.log(t) + 1
        case "forward_kl":
            return -1 / t
        case "js":
            return np.log(2 * t / (1 + t))
        case "alpha":
            return (1 - t**-alpha) / alpha


def preference(
    *four,
    kind="dpo",
    label_smoothing=None,
    tau=0.05,
    divergence="reverse_kl",
    alpha=0.5,
    beta=BETA,
):
    """The loss of every pair; the last of five arguments, if any, is the mask."""
    chosen, rejected, ref_chosen, ref_rejected = four[:4]
    mask = four[4] if len(four) == 5 else np.full(len(chosen), True)
    there = [i for i in range(len(mask)) if mask[i]]
    eps = label_smoothing or (1e-3 if kind == "exo" else 0.0)
    out = np.zeros(len(chosen))
    for i in there:
        c, r = (
            derivative(divergence, alpha, np.exp(logp[i] - ref[i]))
            for logp, ref in ((chosen, ref_chosen), (rejected, ref_rejected))
        )
        if kind in ("nca", "sppo", "apo_zero", "apo_down"):  # without f′'s constant
            c, r = chosen[i] - ref_chosen[i], rejected[i] - ref_rejected[i]
        if kind in ("aot", "aot_unpaired"):
            apart = {
                "aot": ((chosen, rejected), (ref_chosen, ref_rejected)),
                "aot_unpaired": ((chosen, ref_chosen), (rejected, ref_rejected)),
            }
            own, others = ([x[j] - y[j] for j in there] for x, y in apart[kind])
            c = own[there.index(i)]
            r = sorted(others)[sum(x < c for x in own)]
        out[i] = of_kind(kind, c, r, eps, tau, beta)
    return out


def reference_free(chosen, rejected, *, kind, gamma=0.5, beta=BETA):
    odds = lambda logp: np.exp(logp) / (1 - np.exp(logp))
    of_pair = {
        "simpo": lambda c, r: -np.log(sigmoid(beta * c - beta * r - gamma)),
        "cpo": lambda c, r: -np.log(sigmoid(beta * c - beta * r)),
        "cpo_hinge": lambda c, r: max(0.0, 1 - beta * (c - r)),
        "orpo": lambda c, r: -beta * np.log(sigmoid(np.log(odds(c) / odds(r)))),
    }[kind]
    return np.array([of_pair(c, r) for c, r in zip(chosen, rejected, strict=True)])


def unpaired(
    logps,
    ref,
    labels,
    *,
    kind,
    baseline=0.0,
    desirable_weight=1.0,
    undesirable_weight=1.0,
    beta=BETA,
):
    out = np.zeros(len(logps))
    for i, good in enumerate(labels):
        u = logps[i] - ref[i]
        if kind == "bco":
            p = sigmoid(beta * u - baseline)
            loss = -np.log(p if good else 1 - p)
        else:
            z = max(baseline, 0.0) if kind == "kto" else 0.0
            loss = 1 - sigmoid(beta * (u - z) if good else beta * (z - u))
        out[i] = loss * (desirable_weight if good else undesirable_weight)
    return out


def nash_md(logps, ref, wins, at=None, *, beta):
    moving = logps
    logps, ref, wins = (logps, ref, wins) if at is None else at
    out = np.zeros(len(logps))
    for i in range(len(logps)):
        out[i] = (beta * (logps[i] - ref[i]) + 0.5 - wins[i]) * moving[i]
    return out


def length_desensitized(logprobs, other_mask, mask, *, alpha):
    out = np.zeros(len(logprobs))
    for b in range(len(logprobs)):
        own = [logprobs[b, t] for t in range(mask.shape[1]) if mask[b, t]]
        n = min(len(own), int(other_mask[b].sum()))
        out[b] = sum(own[:n]) + alpha * sum(own[n:])
    return out


def log_collision(logits, *, temperature):
    out = np.zeros(logits.shape[:2])
    for b, t in np.ndindex(*out.shape):
        if t:
            p = np.exp(logits[b, t - 1] / temperature)
            out[b, t] = np.log(sum((v / sum(p)) ** 2 for v in p))
    return out


def oracles():
    """{name of a row in test_laws.py: its oracle}."""

    def of(oracle, **options):
        return lambda *args, **at: oracle(*args, **options, **at)

    rows = {
        f"preference_loss[{n}]": of(preference, **o) for n, o in PREFERENCES.items()
    }
    rows |= {
        f"reference_free_loss[{n}]": of(reference_free, **o)
        for n, o in REFERENCE_FREE.items()
    }
    rows |= {f"unpaired_loss[{n}]": of(unpaired, **o) for n, o in UNPAIRED.items()}
    return rows | {
        "xpo_bonus": lambda logps: np.array([0.3 * x for x in logps]),
        "nash_md_loss": of(nash_md, beta=0.4),
        "preference_loss[masked]": preference,
        "preference_loss[aot, masked]": of(preference, kind="aot"),
        "length_desensitized_logps": of(length_desensitized, alpha=0.3),
        "token_log_collision": of(log_collision, temperature=0.7),
    }
