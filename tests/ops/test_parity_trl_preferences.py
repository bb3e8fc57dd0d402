"""The same losses and gradients as TRL's trainers, whose own code is called.

Their ``_compute_loss`` runs on a network that hands out log-probs, with a trainer that
is no more than the options it reads. BCO has no trainer in TRL any more: its oracle is
in preference_oracles.py alone, but for pairs with δ = 0.
"""

import warnings
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import (
    length_desensitized_logps,
    on_policy_weight,
    preference_loss,
    reference_free_loss,
    unpaired_loss,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what trl imports
    why = "an oracle: pip install 'rlhf_jax[parity]'"
    torch = pytest.importorskip("torch", reason=why)
    pytest.importorskip("trl", "1.16", reason=why, exc_type=ImportError)
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.kto_trainer import KTOTrainer

B, T, BETA = 5, 6, 0.7
RNG = np.random.default_rng(0)
LOGPROBS = -RNG.random(size=(2 * B, T), dtype=np.float32)  # chosen, then rejected
COLLISION = -RNG.exponential(size=(2 * B, T)).astype(np.float32)
REF = (-1.5 + 0.5 * RNG.normal(size=(2, B))).astype(np.float32)
START = RNG.integers(1, 4, (2 * B, 1))
MASK = (np.arange(T) >= START) & (np.arange(T) < START + RNG.integers(1, 4, (2 * B, 1)))

ACCELERATOR = SimpleNamespace(
    device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x
)


def network(logprobs):
    """log-probs from the second token on, 0 outside the completion, as TRL's."""
    nothing = torch.zeros(logprobs.shape[0], T - 1)
    outputs = SimpleNamespace(
        log_probs=(logprobs * torch.from_numpy(MASK[: len(logprobs)]))[:, 1:],
        log_sum_sq_probs=torch.from_numpy(COLLISION)[:, 1:],
        entropy=nothing,
        mean_logits=nothing,
        is_top1=nothing > 0,
    )
    return lambda **_: outputs


def trainer(**options) -> Any:
    return SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=ACCELERATOR,
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        beta=BETA,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
        **options,
    )


def dpo_trainer(loss_type, **options) -> Any:
    defaults = {
        "label_smoothing": 0.0,
        "ld_alpha": None,
        "use_weighting": False,
        "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5,
    }
    return trainer(
        loss_types=[loss_type],
        loss_weights=[1.0],
        args=SimpleNamespace(discopop_tau=options.pop("tau", 0.05)),
        **defaults | options,
    )


def with_gradient(loss_fn, *arrays):
    """(loss, gradients by the arrays) of a function of torch tensors."""
    leaves = [torch.tensor(a, requires_grad=True) for a in arrays]
    loss = loss_fn(*leaves)
    loss.backward()
    return loss.item(), [leaf.grad.numpy() for leaf in leaves]


def assert_same(ours, theirs, *arrays):
    value, grads = theirs
    argnums = tuple(range(len(arrays)))
    got = jax.value_and_grad(ours, argnums=argnums)(*map(jnp.asarray, arrays))
    np.testing.assert_allclose(got[0], value, rtol=1e-5)
    assert np.abs(grads[0]).max() > 1e-4
    for a, b in zip(got[1], grads, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7)


def dpo(trainer):
    """TRL's loss of the pairs, and its gradient by every log-prob."""
    inputs = {
        "input_ids": torch.zeros(2 * B, T, dtype=torch.long),
        "attention_mask": torch.ones(2 * B, T, dtype=torch.long),
        "completion_mask": torch.from_numpy(MASK.astype(np.int64)),
    }

    def loss(logprobs, ref):
        refs = {"ref_chosen_logps": ref[0], "ref_rejected_logps": ref[1]}
        call = DPOTrainer._compute_loss
        return call(trainer, network(logprobs), inputs | refs, False)

    return with_gradient(loss, LOGPROBS, REF)


def sums(logprobs, mask=MASK):
    """[2, B] log-probs of completions, chosen first."""
    return jnp.sum(jnp.where(mask, logprobs, 0.0), axis=1).reshape(2, B)


@pytest.mark.parametrize(
    "loss_type, theirs, ours",
    [
        ("sigmoid", {}, {"kind": "dpo"}),
        ("hinge", {}, {"kind": "hinge"}),
        ("robust", {"label_smoothing": 0.2}, {"kind": "robust"}),
        ("exo_pair", {"label_smoothing": 0.2}, {"kind": "exo"}),
        ("nca_pair", {}, {"kind": "nca"}),
        ("sppo_hard", {}, {"kind": "sppo"}),
        ("aot", {"label_smoothing": 0.2}, {"kind": "aot"}),
        ("aot_unpaired", {}, {"kind": "aot_unpaired"}),
        ("apo_zero", {}, {"kind": "apo_zero"}),
        ("apo_down", {}, {"kind": "apo_down"}),
        ("discopop", {}, {"kind": "discopop"}),
        ("discopop", {"tau": 0.5}, {"kind": "discopop"}),
    ],
)
def test_pairs(loss_type, theirs, ours):
    def loss(logprobs, ref):
        return preference_loss(*sums(logprobs), *ref, beta=BETA, **ours | theirs).mean()

    assert_same(loss, dpo(dpo_trainer(loss_type, **theirs)), LOGPROBS, REF)


@pytest.mark.parametrize("kind", ["dpo", "hinge", "robust", "exo", "discopop"])
@pytest.mark.parametrize(
    "theirs, ours",
    [
        ({"f_divergence_type": "forward_kl"}, {"divergence": "forward_kl"}),
        ({"f_divergence_type": "js_divergence"}, {"divergence": "js"}),
        ({"f_divergence_type": "alpha_divergence"}, {"divergence": "alpha"}),
        # TRL's exponent is 1 less than its coefficient, the paper's is −α.
        (
            {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7},
            {"divergence": "alpha", "alpha": 0.3},
        ),
    ],
)
def test_divergences(kind, theirs, ours):
    if kind in ("robust", "exo"):
        theirs, ours = (
            theirs | {"label_smoothing": 0.2},
            ours | {"label_smoothing": 0.2},
        )
    loss_type = {"dpo": "sigmoid", "exo": "exo_pair"}.get(kind, kind)

    def loss(logprobs, ref):
        four = *sums(logprobs), *ref
        return preference_loss(*four, kind=kind, beta=BETA, **ours).mean()

    assert_same(loss, dpo(dpo_trainer(loss_type, **theirs)), LOGPROBS, REF)


def test_ipo_of_means_a_token():
    lengths = jnp.asarray(MASK.sum(axis=1).reshape(2, B), jnp.float32)

    def loss(logprobs, ref):
        four = *(sums(logprobs) / lengths), *(ref / lengths)
        return preference_loss(*four, kind="ipo", beta=BETA).mean()

    assert_same(loss, dpo(dpo_trainer("ipo")), LOGPROBS, REF)


def test_length_desensitized():
    # With the reference given, TRL expects it to be desensitised already, as we do.
    chosen, rejected = jnp.asarray(MASK[:B]), jnp.asarray(MASK[B:])
    assert np.any(MASK[:B].sum(1) > MASK[B:].sum(1))
    assert np.any(MASK[:B].sum(1) < MASK[B:].sum(1))

    def loss(logprobs, ref):
        of = lambda x, own, other: length_desensitized_logps(x, own, other, alpha=0.3)
        better = of(logprobs[:B], chosen, rejected)
        worse = of(logprobs[B:], rejected, chosen)
        return preference_loss(better, worse, *ref, beta=BETA).mean()

    theirs = dpo(dpo_trainer("sigmoid", ld_alpha=0.3))
    assert_same(loss, theirs, LOGPROBS, REF)


def test_on_policy_weights():
    def loss(logprobs, ref):
        weight = on_policy_weight(logprobs, jnp.asarray(COLLISION), jnp.asarray(MASK))
        terms = preference_loss(*sums(logprobs), *ref, beta=BETA)
        return jnp.mean(terms * weight[:B] * weight[B:])

    theirs = dpo(dpo_trainer("sigmoid", use_weighting=True))
    assert_same(loss, theirs, LOGPROBS, REF)


def test_pairs_of_bco_without_a_shift():
    def loss(logprobs, ref):
        good = jnp.arange(2 * B) < B
        logps, refs = sums(logprobs).reshape(-1), ref.reshape(-1)
        options = {"kind": "bco", "beta": BETA, "baseline": 0.0}
        return 2 * unpaired_loss(logps, refs, good, **options).mean()

    assert_same(loss, dpo(dpo_trainer("bco_pair")), LOGPROBS, REF)


@pytest.mark.parametrize("shift", [-1.0, 1.0])
@pytest.mark.parametrize("kind", ["kto", "apo_zero"])
def test_good_and_bad_completions(kind, shift):
    labels = np.array([True, False, False, True, False])
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.6}
    logps_of_others = REF[1] + np.float32(shift)  # mean of u: shift
    theirs = trainer(
        loss_type={"kto": "kto", "apo_zero": "apo_zero_unpaired"}[kind],
        calculate_KL=kind == "kto",
        _compute_kl_logps=lambda model, batch: torch.from_numpy(logps_of_others),
        **weights,
    )
    inputs = {
        "input_ids": torch.zeros(B, T, dtype=torch.long),
        "attention_mask": torch.ones(B, T, dtype=torch.long),
        "completion_mask": torch.from_numpy(MASK[:B].astype(np.int64)),
        "ref_KL_logps": torch.from_numpy(REF[1]),
        "label": torch.from_numpy(labels),
    }

    def their_loss(logprobs, ref):
        call = KTOTrainer._compute_loss
        return call(theirs, network(logprobs), inputs | {"ref_logps": ref}, False)

    def loss(logprobs, ref):
        logps = jnp.sum(jnp.where(MASK[:B], logprobs, 0.0), axis=1)
        options = {"baseline": shift} if kind == "kto" else {}
        return unpaired_loss(
            logps, ref, jnp.asarray(labels), kind=kind, beta=BETA, **options, **weights
        ).mean()

    arrays = LOGPROBS[:B], REF[0]
    assert_same(loss, with_gradient(their_loss, *arrays), *arrays)


CPO = {"alpha": 0.0, "label_smoothing": 0.0, "simpo_gamma": 0.5}


@pytest.mark.parametrize(
    "kind, loss_type", [("simpo", "simpo"), ("cpo", "sigmoid"), ("cpo_hinge", "hinge")]
)
def test_pairs_without_a_reference(kind, loss_type):
    theirs = trainer(loss_type=loss_type, **CPO)
    call = lambda *pair: CPOTrainer.cpo_loss(theirs, *pair)[0].mean()
    ours = lambda *pair: reference_free_loss(*pair, kind=kind, beta=BETA).mean()
    assert_same(ours, with_gradient(call, *REF), *REF)


def test_odds_ratio():
    theirs = trainer()
    # TRL subtracts what we add.
    call = lambda *pair: -ORPOTrainer.odds_ratio_loss(theirs, *pair)[0].mean()
    ours = lambda *pair: reference_free_loss(*pair, kind="orpo", beta=BETA).mean()
    means = REF + np.float32(0.8)  # on both sides of −log 2: TRL's formula changes
    means = np.minimum(means, np.float32(-0.1))
    assert means.min() < -np.log(2) < means.max()
    assert_same(ours, with_gradient(call, *means), *means)
