"""The benchmark's workloads: an iteration of each training script, at fixed sizes.

Every workload goes through ``parallel.data_parallel`` and the steps that the scripts
run, states donated; putting a batch together and on the devices is part of the
iteration. Weights are random; responses have no stop token and always their full
length. Everything is float32.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from experiments import benchmark_inputs as inputs
from experiments.networks import Networks
from experiments.rollouts import make_compare, make_draw, score_step
from experiments.runs import on_batches
from experiments.timing import Workload
from rlhf_jax.data.batching import right_padded
from rlhf_jax.models import (
    CausalLM,
    ScoreModel,
    TransformerConfig,
    decode_layout,
    init_params,
    policy_apply,
    score_apply,
    separate_critic_apply,
)
from rlhf_jax.optim import OptimConfig, make_optimizer
from rlhf_jax.parallel import Devices, data_parallel, replicate, shard, unshard
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.steps import (
    POLICY_PRESETS,
    KLConfig,
    PolicyConfig,
    PreferenceConfig,
    TrainState,
    create_policy_state,
    create_state,
    pairwise_terms,
    policy_step,
    preference_step,
    reward_step,
    sample_step,
    sft_step,
)
from rlhf_jax.types import (
    Array,
    Metrics,
    Params,
    Rollout,
    TokenBatch,
)

PROMPT = 64  # tokens
DECODE_ROWS, DECODE_NEW, DECODE_STAGES = 16, 128, 4
SFT_ROWS, SFT_LENGTH = 8, 256
PAIRS, PAIR_LENGTH = 8, 128
PPO_PROMPTS, PPO_NEW, PPO_EPOCHS = 16, 64, 4
GRPO_PROMPTS, GRPO_COMPLETIONS, GRPO_NEW = 4, 8, 64
ADAMW = OptimConfig(learning_rate=1e-5, schedule="constant", max_grad_norm=1.0)


def decode(model: TransformerConfig, devices: Devices) -> Workload:
    """W1: 16 prompts × 64 tokens, exactly 128 new tokens each, temperature 1."""
    sampling = SamplingConfig(max_new_tokens=DECODE_NEW, stages=DECODE_STAGES)
    run = sampler(model, devices, rows=DECODE_ROWS, prompt=PROMPT, sampling=sampling)
    return Workload(run, DECODE_ROWS * DECODE_NEW, "new tokens/s")


def sampler(
    model: TransformerConfig,
    devices: Devices,
    *,
    rows: int,
    prompt: int,
    sampling: SamplingConfig,
) -> Callable[[], Rollout]:
    """A function that answers a batch of prompts."""
    params = replicate(_policy(model), devices)
    step = functools.partial(
        sample_step,
        apply_fn=policy_apply(model),
        config=sampling,
        layout=decode_layout,
    )
    step = data_parallel(step, devices, in_axes=(None, 0, 0), out_axes=0)
    prompts, keys = inputs.prompts(model, rows, prompt), _keys()
    numbers = np.arange(rows, dtype=np.int32)

    def run():
        asked = shard((next(prompts), numbers), devices)
        return jax.block_until_ready(step(params, *asked, key=next(keys)))

    return run


def sft(model: TransformerConfig, devices: Devices) -> Workload:
    """W2: one update on 8 × 256 tokens, all of them learned."""
    state = create_state(policy_apply(model), _policy(model), make_optimizer(ADAMW, 1))
    batches = (
        right_padded([()] * SFT_ROWS, rows, length=SFT_LENGTH, pad_id=0)
        for rows in inputs.ids(model, SFT_ROWS, SFT_LENGTH, seed=0)
    )
    run = _updates(sft_step, state, batches, devices)
    return Workload(run, SFT_ROWS * SFT_LENGTH, "tokens/s")


def reward(model: TransformerConfig, devices: Devices) -> Workload:
    """W3: one Bradley–Terry update on 8 pairs, 128 tokens a side."""
    params, tx = _scorer(model, seed=0), make_optimizer(ADAMW, 1)
    state = create_state(score_apply(model), params, tx)
    step = functools.partial(reward_step, terms_fn=pairwise_terms)
    run = _updates(
        step, state, inputs.pairs(model, PAIRS, PAIR_LENGTH, prompt=0), devices
    )
    return Workload(run, PAIRS, "pairs/s")


def dpo(model: TransformerConfig, devices: Devices) -> Workload:
    """W4: one DPO update on 8 pairs, prompts and completions of 64 tokens.

    The reference's log-probs are computed in the update, as the script does.
    """
    apply_fn, params = policy_apply(model), _policy(model)
    state = create_state(apply_fn, params, make_optimizer(ADAMW, 1))
    config = PreferenceConfig(kind="dpo", beta=0.1)
    step = functools.partial(preference_step, ref_apply_fn=apply_fn, config=config)
    ref_params = replicate(params, devices)
    run = _updates(
        step,
        state,
        inputs.pairs(model, PAIRS, PAIR_LENGTH, prompt=PROMPT),
        devices,
        ref_params,
    )
    return Workload(run, PAIRS, "pairs/s")


def ppo(model: TransformerConfig, devices: Devices) -> Workload:
    """W5: 16 episodes of 64 + 64 tokens, then 4 epochs of one minibatch.

    Policy, reference, critic and reward model are networks of one size.
    """
    config = PolicyConfig(
        sampling=SamplingConfig(max_new_tokens=PPO_NEW),
        missing_stop="keep",  # there is no stop token
        epochs=PPO_EPOCHS,
    )
    policy, critic = _policy(model), _scorer(model, seed=1)
    nets = Networks(
        separate_critic_apply(model, model),
        policy_apply(model),
        sample_fn=policy_apply(model),
        layout=lambda params: decode_layout(params["policy"]),
        params={"policy": policy, "critic": critic},
        frozen=None,
        params_path="params/policy",
    )
    ref_params, judge = replicate((policy, _scorer(model, seed=2)), devices)
    score = functools.partial(score_step, score_fn=score_apply(model), kind="score")
    score = data_parallel(score, devices, in_axes=(None, 0), out_axes=0)
    reward = lambda rollout: score(judge, rollout.batch)
    run = _iterations(
        nets,
        config,
        reward,
        ref_params,
        inputs.prompts(model, PPO_PROMPTS, PROMPT),
        devices,
    )
    return Workload(run, PPO_PROMPTS, "episodes/s")


def grpo(model: TransformerConfig, devices: Devices, *, beta: float) -> Workload:
    """W6: 4 prompts × 8 completions of 64 + 64 tokens, a Python reward, one update.

    ``beta`` weighs the KL to the reference; at 0 there is no reference.
    """
    sampling = SamplingConfig(max_new_tokens=GRPO_NEW, completions=GRPO_COMPLETIONS)
    config = dataclasses.replace(
        POLICY_PRESETS["grpo"](sampling),
        kl=KLConfig(coef=beta, kind="k3", place="loss"),
        reduction="token",
    )
    params = _policy(model)
    nets = Networks(
        policy_apply(model),
        policy_apply(model),
        sample_fn=policy_apply(model),
        layout=decode_layout,
        params=params,
        frozen=None,
        params_path="params",
    )
    ref_params = replicate(params, devices) if beta else None
    reward = lambda rollout: shard(distinct_words(unshard(rollout.batch)), devices)
    run = _iterations(
        nets,
        config,
        reward,
        ref_params,
        inputs.prompts(model, GRPO_PROMPTS, PROMPT),
        devices,
    )
    return Workload(run, GRPO_PROMPTS * GRPO_COMPLETIONS, "completions/s")


def _iterations(
    nets: Networks,
    config: PolicyConfig,
    reward: Callable[[Rollout], Array],
    ref_params: Params,
    prompts: Iterator[TokenBatch],
    devices: Devices,
) -> Callable[[], Metrics]:
    """A function that makes one iteration on the next prompts."""
    draw = make_draw(nets, config, reward, None, devices)
    compare = make_compare(nets, config, ref_params, None, devices)
    update = on_batches(policy_step, devices, donate_state=True, config=config)
    tx = make_optimizer(ADAMW, 1)
    state = create_policy_state(nets.apply_fn, nets.params, tx, kl_coef=config.kl.coef)
    state = replicate(state, devices)
    keys = _keys()

    def run():
        nonlocal state
        drawn = draw(state.params, next(prompts), next(keys))
        experience = compare(state, drawn).experience
        state, metrics = update(state, experience, None, key=next(keys))
        return jax.block_until_ready((state.params, metrics))[1]

    return run


WORKLOADS: dict[str, Callable[..., Workload]] = {
    "W1": decode,
    "W2": sft,
    "W3": reward,
    "W4": dpo,
    "W5": ppo,
    "W6": grpo,  # the only one with a beta
}


def distinct_words(batch: TokenBatch) -> np.ndarray:
    """[B] float32: different words in the texts of the responses, as in the peers."""
    tokens, mask = jax.device_get((batch.tokens, batch.mask))
    words = lambda ids: " ".join(f"w{i}" for i in ids)
    texts = [words(row[m].tolist()) for row, m in zip(tokens, mask, strict=True)]
    return np.array([len(set(text.split())) for text in texts], np.float32)


def _updates(
    step: Callable,
    state: TrainState,
    batches: Iterator[Any],
    devices: Devices,
    *others: Any,
) -> Callable[[], Metrics]:
    """A function that makes one update on the next batch; ``others`` are replicated."""
    axes = (None, 0, *[None] * len(others))
    update = data_parallel(
        step, devices, in_axes=axes, out_axes=None, donate_state=True
    )
    state = replicate(state, devices)

    def run():
        nonlocal state
        state, metrics = update(state, shard(next(batches), devices), *others)
        return jax.block_until_ready((state.params, metrics))[1]

    return run


def _policy(model: TransformerConfig) -> Params:
    return init_params(CausalLM(model), key=jax.random.key(0))


def _scorer(model: TransformerConfig, *, seed: int) -> Params:
    return init_params(ScoreModel(model), key=jax.random.key(seed))


def _keys() -> Iterator[Array]:
    """A new key for every use."""
    return (jax.random.fold_in(jax.random.key(0), i) for i in itertools.count())
