"""One update of online DPO from the same completions and scores as TRL's trainer.

Its ``training_step`` runs on completions and log-probs that are handed to it. TRL 1.16
has XPO and Nash-MD no more; how they compare with 0.26 is in docs/algorithms.
"""

import warnings
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import token_batch

from rlhf_jax.ops import preference_loss
from rlhf_jax.steps import rank_pairs
from rlhf_jax.types import Rollout

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what trl imports
    why = "an oracle: pip install 'rlhf_jax[parity]'"
    torch = pytest.importorskip("torch", reason=why)
    pytest.importorskip("trl", "1.16", reason=why, exc_type=ImportError)
    from trl.experimental.online_dpo import OnlineDPOTrainer

B, T, BETA = 5, 4, 0.7
RNG = np.random.default_rng(0)
LOGPROBS, REF = -RNG.random((2, 2, B, T), dtype=np.float32)  # [completion, prompt, T]
MASK = np.arange(T) < RNG.integers(1, T + 1, (2, B, 1))
SCORES = RNG.normal(size=(2, B)).astype(np.float32)


def trl_step(kind):
    """(loss, its gradient by the log-probs) [2, B, T]."""
    logprobs = torch.tensor(LOGPROBS.reshape(2 * B, T), requires_grad=True)
    views = {"policy": logprobs, "reference": torch.tensor(REF.reshape(2 * B, T))}
    ids = torch.zeros(2 * B, T, dtype=torch.long)
    found = []
    trainer: Any = SimpleNamespace(
        args=SimpleNamespace(
            use_vllm=False,
            missing_eos_penalty=None,
            loss_type=kind,
            torch_empty_cache_steps=None,
            optim="adamw_torch",
            n_gpu=1,
            gradient_accumulation_steps=1,
        ),
        accelerator=SimpleNamespace(
            gather_for_metrics=lambda x: x, backward=lambda loss: found.append(loss)
        ),
        processing_class=SimpleNamespace(batch_decode=lambda ids, **_: len(ids) * [""]),
        stats=defaultdict(list),
        beta=BETA,
        eos_token_ids=[1],
        ref_model="reference",
        reward_funcs=[None],
        state=SimpleNamespace(global_step=1),
        _generate=lambda *_: (
            ids,
            ids,
            ids,
            torch.tensor(MASK.reshape(2 * B, T)).long(),
            None,
        ),
        _forward=lambda model, *_: views[model],
        _calculate_rewards_from_functions=lambda **_: torch.tensor(SCORES.reshape(-1)),
    )
    model: Any = type("Model", (str,), {"train": lambda self: None})("policy")
    OnlineDPOTrainer.training_step(trainer, model, {"prompt": B * [""]})
    [loss] = found
    loss.backward()
    return loss.item(), logprobs.grad.numpy().reshape(2, B, T)


@pytest.mark.parametrize("kind", ["sigmoid", "ipo"])
def test_online_dpo(kind):
    # Tokens that say whose they are, prompt after prompt, as rank_pairs wants them.
    own = np.arange(2 * B).reshape(2, B).T.reshape(-1)
    batch = token_batch(own[:, None])
    rollout = Rollout(batch, *6 * [jnp.zeros(2 * B)])
    pairs, _ = rank_pairs(rollout, jnp.asarray(SCORES.T.reshape(-1)))

    def loss(logprobs):
        logps, ref = (
            jnp.where(MASK, x, 0).sum(axis=2).reshape(-1) for x in (logprobs, REF)
        )
        chosen, rejected = pairs.chosen.tokens[:, 0], pairs.rejected.tokens[:, 0]
        four = logps[chosen], logps[rejected], ref[chosen], ref[rejected]
        losses = preference_loss(
            *four, kind="ipo" if kind == "ipo" else "dpo", beta=BETA
        )
        return jnp.sum(losses * pairs.weight) / jnp.sum(pairs.weight)

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(LOGPROBS))
    expected, expected_gradient = trl_step(kind)
    assert float(value) == pytest.approx(expected, rel=2e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=2e-5, atol=1e-6)
