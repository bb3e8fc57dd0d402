"""The same numbers as TRL, value and gradient, where it has the function.

Its losses are methods: they are called on an object that has what they look at, with
log-probs in place of a model.
"""

from collections import defaultdict
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import ops

torch = pytest.importorskip("torch", reason="an oracle: see the extra 'parity'")
trl = pytest.importorskip(
    "trl", reason="an oracle: pip install 'rlhf_jax[parity]'", exc_type=ImportError
)

N, T, LENGTHS = 6, 7, [7, 3, 1, 5, 2, 4]
# The same responses, one after the other in three rows: (7), (3, 4), (1, 5) and (2).
PLACES = [(0, 0, 1), (1, 0, 1), (2, 0, 1), (2, 1, 2), (3, 0, 1), (1, 3, 2)]


def example(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    mask = np.arange(T)[None] < np.array(LENGTHS)[:, None]
    mask[0, 2] = mask[3, 0] = False  # a tool's tokens
    logprobs = -np.abs(draw(N, T)) - 0.1
    return {
        "logprobs": logprobs,
        "old": logprobs + 0.5 * draw(N, T),
        "ref": logprobs + 0.5 * draw(N, T),
        "advantages": draw(N),
        "mask": mask,
    }


def pack(x: np.ndarray, fill: float = 0.0) -> np.ndarray:
    """[N, T] in rows of their own -> [4, T], what stands at no token being ``fill``."""
    packed = np.full((4, T), fill, x.dtype)
    for i, (row, start, _) in enumerate(PLACES):
        packed[row, start : start + LENGTHS[i]] = x[i, : LENGTHS[i]]
    return packed


SEGMENTS = pack(np.array([[s] * T for *_, s in PLACES], np.int32))


def theirs(batch, trainer: str = "GRPOTrainer", **options):
    """(loss, gradient by the log-probs, metrics) of a TRL trainer."""
    tensors = {k: torch.tensor(v, dtype=torch.float64) for k, v in batch.items()}
    logprobs = tensors["logprobs"].requires_grad_()
    empty = torch.zeros(N, 0)
    args = {"use_bias_correction_kl": False, "delta": None, "steps_per_generation": 1}
    args |= {k: options.pop(k) for k in args if k in options}
    given: dict[str, Any] = {
        "loss_type": "grpo",
        "importance_sampling_level": "token",
        "beta": 0.0,
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "use_vllm": False,
        **options,
    }
    owner = SimpleNamespace(
        **given,
        args=SimpleNamespace(**args),
        _get_per_token_logps_and_entropies=lambda *a, **k: (logprobs, logprobs, None),
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x
        ),
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        max_completion_length=T,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        aux_loss_enabled=False,
        vllm_importance_sampling_correction=True,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
    )
    mask = tensors["mask"]
    inputs = {
        "prompt_ids": empty,
        "prompt_mask": empty,
        "completion_ids": mask,
        "completion_mask": mask,
        "advantages": tensors["advantages"],
        "old_per_token_logps": tensors["old"],
        "old_logps": (tensors["old"] * mask).sum(1),
        "ref_per_token_logps": tensors["ref"],
        "importance_sampling_ratio": tensors.get("weights"),
        "num_items_in_batch": mask.sum(),
    }
    loss = getattr(trl, trainer)._compute_loss(owner, None, inputs)
    loss.backward()
    return loss.item(), logprobs.grad.numpy(), owner._metrics["train"]


def ours(batch, surrogate, *, reduction, kl=None, packed=False, **options):
    """(loss, gradient, metrics) of the parts, put together as a step does."""
    place = lambda x, fill=0.0: jnp.asarray(pack(x, fill) if packed else x)
    ids = jnp.asarray(SEGMENTS) if packed else None
    mask = place(batch["mask"])
    advantages = place(np.where(batch["mask"], batch["advantages"][:, None], np.nan))
    old, ref = place(batch["old"], np.nan), place(batch["ref"], np.nan)
    by_row = {"segment_ids": ids} if surrogate is ops.gspo_loss else {}

    def loss(logprobs):
        terms, metrics = surrogate(logprobs, old, advantages, mask, **by_row, **options)
        if "weights" in batch:
            terms = terms * place(batch["weights"])
        if kl is not None:
            terms = terms + 0.3 * ops.kl_estimate(logprobs, ref, kind=kl, mask=mask)
        weights, count = ops.loss_weights(mask, ids, **reduction)
        return jnp.sum(weights * terms) / count, metrics

    logprobs = place(batch["logprobs"], np.nan)
    (value, metrics), grad = jax.value_and_grad(loss, has_aux=True)(logprobs)
    return value, grad, metrics.compute()


def same(got, expected, *, packed=False, value=True):
    """Ours in float32, theirs in float64."""
    close = partial(np.testing.assert_allclose, rtol=5e-6, atol=1e-7)
    if value:
        close(got[0], expected[0])
    assert np.abs(expected[1]).max() > 0.01  # a gradient of 0 would prove nothing
    close(got[1], pack(expected[1]) if packed else expected[1])


in_any_rows = pytest.mark.parametrize("packed", [False, True], ids=["alone", "packed"])
TOKEN, SEQUENCE = {"kind": "token"}, {"kind": "sequence"}
CONSTANT = {"kind": "constant", "length": T}


@in_any_rows
@pytest.mark.parametrize(
    "loss_type, reduction",
    [("grpo", SEQUENCE), ("bnpo", TOKEN), ("dapo", TOKEN), ("dr_grpo", CONSTANT)],
)
def test_clipped_surrogate_in_every_reduction(loss_type, reduction, packed):
    batch = example(0)
    expected = theirs(batch, loss_type=loss_type, epsilon_high=0.4)
    options = {"clip_eps_high": 0.4, "packed": packed}
    got = ours(batch, ops.ppo_loss, reduction=reduction, **options)
    same(got, expected, packed=packed)
    for part, name in [("", "region"), ("_low", "low"), ("_high", "high")]:
        share = got[2][f"policy/clip_fraction{part}"]
        assert share == pytest.approx(expected[2][f"clip_ratio/{name}_mean"][0])
        assert share > 0


def test_dual_clip_is_delta():
    batch = example(1)
    expected = theirs(batch, delta=1.3)
    got = ours(batch, ops.ppo_loss, reduction=SEQUENCE, dual_clip=1.3)
    same(got, expected)
    assert got[2]["policy/clip_fraction_dual"] > 0


@in_any_rows
def test_gspo(packed):
    batch = example(2)
    options = {"importance_sampling_level": "sequence", "epsilon_high": 0.1}
    expected = theirs(batch, epsilon_low=0.05, **options)
    options = {"clip_eps": 0.05, "clip_eps_high": 0.1, "packed": packed}
    got = ours(batch, ops.gspo_loss, reduction=SEQUENCE, **options)
    same(got, expected, packed=packed)
    assert 0 < got[2]["policy/clip_fraction"] < 1


@in_any_rows
def test_cispo(packed):
    batch = example(3)
    expected = theirs(batch, loss_type="cispo", epsilon_high=1.2)
    options = {"max_ratio": 1.2, "packed": packed}
    got = ours(batch, ops.cispo_loss, reduction=TOKEN, **options)
    same(got, expected, packed=packed)
    # Theirs counts only those of positive advantage.
    share = expected[2]["cispo_clip_ratio"][0]
    assert 0 < share < got[2]["policy/clip_fraction"]


@in_any_rows
def test_k3_in_the_loss(packed):
    batch = example(4)
    expected = theirs(batch, beta=0.3)
    got = ours(batch, ops.ppo_loss, reduction=SEQUENCE, kl="k3", packed=packed)
    same(got, expected, packed=packed)


def test_their_corrected_k3_has_the_gradient_of_k2_before_the_first_update():
    batch = example(5)
    batch["old"] = batch["logprobs"]
    expected = theirs(batch, beta=0.3, use_bias_correction_kl=True)
    same(ours(batch, ops.ppo_loss, reduction=SEQUENCE, kl="k2"), expected, value=False)


def importance_loop(batch, kind: str, level: str) -> np.ndarray:
    """As GRPOTrainer._generate_and_score_completions has it, a row at a time."""
    out = np.zeros((N, T), np.float32)
    for i, owned in enumerate(batch["mask"]):
        apart = (batch["logprobs"] - batch["old"])[i].astype(np.float64)
        per_token = np.full(T, apart[owned].sum()) if level == "sequence" else apart
        ratio = np.exp(per_token)
        kept = np.minimum(ratio, 1.4) if kind == "truncate" else ratio * (ratio <= 1.4)
        out[i] = np.where(owned, kept, 0)
    return out


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("kind", ["truncate", "mask"])
def test_importance_weights_multiply_the_terms(kind: Any, level: Any):
    batch = example(6)
    options = {"kind": kind, "level": level, "cap": 1.4}
    weigh = partial(ops.importance_weights, **options)
    alone = [jnp.asarray(batch[name]) for name in ("logprobs", "old", "mask")]
    weights = weigh(*alone)
    expected = importance_loop(batch, kind, level)
    np.testing.assert_allclose(weights, expected, rtol=1e-5)
    assert (expected[batch["mask"]] == (1.4 if kind == "truncate" else 0)).any()
    packed = [jnp.asarray(pack(np.asarray(x))) for x in alone]
    in_rows = weigh(*packed, segment_ids=jnp.asarray(SEGMENTS))
    np.testing.assert_allclose(in_rows, pack(expected), rtol=1e-5)
    weighted = {**batch, "weights": np.asarray(weights)}
    got = ours(weighted, ops.ppo_loss, reduction=SEQUENCE)
    same(got, theirs({**batch, "weights": expected}, use_vllm=True))


@in_any_rows
def test_rloo_before_the_first_update(packed):
    """Their ratio of a whole response has the gradient of Σₜ log π, not its value."""
    batch = example(7)
    batch["old"] = batch["logprobs"]
    expected = theirs(batch, trainer="RLOOTrainer")
    surrogate = lambda logprobs, old, *rest: ops.policy_gradient_loss(logprobs, *rest)
    reduction = {"kind": "constant", "length": 1}
    got = ours(batch, surrogate, reduction=reduction, packed=packed)
    same(got, expected, packed=packed, value=False)
    assert abs(got[0] - expected[0]) > 0.1


@pytest.mark.parametrize("scale", ["std", "none", "batch"])
def test_group_advantages(scale: Any):
    from trl.trainer.utils import nanstd

    groups = torch.tensor(np.random.default_rng(8).normal(2, 3, (3, 4)))
    scores, lead = groups.flatten(), groups - groups.mean(dim=1, keepdim=True)
    std = {
        "std": nanstd(groups, dim=1, keepdim=True) + 1e-4,
        "none": torch.ones(()),
        "batch": nanstd(scores) + 1e-4,
    }[scale]
    got = ops.group_advantages(jnp.asarray(scores.numpy()), group_size=4, scale=scale)
    np.testing.assert_allclose(got, (lead / std).flatten(), rtol=5e-6, atol=1e-6)


def test_overlong_penalty():
    from trl.rewards.other_rewards import get_soft_overlong_punishment

    punish = get_soft_overlong_punishment(max_completion_len=10, soft_punish_cache=4)
    expected = punish([[1] * n for n in range(15)])
    got = ops.overlong_penalty(jnp.arange(15), budget=10, buffer=4)
    np.testing.assert_allclose(got, expected)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
def test_generalised_jsd(beta, monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.gkd import GKDTrainer

    rng = np.random.default_rng(9)
    student, teacher = rng.normal(size=(2, 3, T, 11)).astype(np.float32)
    mask = jnp.asarray(rng.random((3, T)) < 0.7).at[:, 0].set(False)
    leaf = torch.tensor(student, dtype=torch.float64, requires_grad=True)
    loss = GKDTrainer.generalized_jsd_loss(
        leaf[:, :-1],
        torch.tensor(teacher, dtype=torch.float64)[:, :-1],
        torch.tensor(np.where(mask, 0, -100))[:, 1:],
        beta=beta,
        temperature=0.7,
    )
    loss.backward()

    def mean(student):
        options = {"beta": beta, "temperature": 0.7}
        terms = ops.distillation_loss(student, jnp.asarray(teacher), mask, **options)
        return jnp.sum(terms) / mask.sum()

    value, grad = jax.value_and_grad(mean)(jnp.asarray(student))
    np.testing.assert_allclose(value, loss.item(), rtol=2e-6)
    assert leaf.grad is not None
    np.testing.assert_allclose(grad, leaf.grad, rtol=1e-5, atol=1e-8)
