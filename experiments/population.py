"""The members of a sweep: what they are and one iteration of one, in pure functions."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.benchmark_inputs import FIRST_ID
from rlhf_jax.errors import UserError
from rlhf_jax.models import (
    ActorCritic,
    CausalLM,
    TransformerConfig,
    actor_critic_apply,
    init_params,
    policy_apply,
)
from rlhf_jax.optim import OptimConfig, make_tunable_optimizer
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.steps import (
    KLConfig,
    PolicyConfig,
    PolicyState,
    RewardFn,
    create_policy_state,
    policy_iteration,
)
from rlhf_jax.types import Array, Metrics, Params, Rollout, TokenBatch

OPTIM = OptimConfig(schedule="constant", eps=1e-5)


@dataclasses.dataclass(frozen=True)
class Config:
    """A population over seeds and learning rates."""

    run_dir: Path = Path("runs/sweep")
    """Where metrics of each member, the table's numbers and the picture go."""
    seeds: int = 8
    """Seeds 0, 1, … of each learning rate."""
    learning_rates: tuple[float, ...] = (1e-2,)
    """Learning rates; members are seeds × rates."""
    iterations: int = 100
    """Iterations of each member."""
    episodes: int = 8
    """Responses of an iteration and member."""
    prompt_length: int = 4
    """Tokens of a prompt."""
    compare: bool = False
    """Also iterates each member alone, from where it is, and compares times and
    metrics."""
    algorithm: PolicyConfig = PolicyConfig(
        SamplingConfig(max_new_tokens=8),
        kl=KLConfig(coef=0.02),
        missing_stop="keep",  # there is no stop token
        epochs=1,
    )
    """What trains the policies."""
    model: TransformerConfig = TransformerConfig(
        vocab_size=32,
        d_model=16,
        n_layers=2,
        n_heads=2,
        n_kv_heads=2,
        d_head=8,
        d_ff=32,
        max_length=64,
        scan_unroll=2,
    )
    """The policy; the critic is a head on it."""

    def check(self) -> None:
        """Refuses what cannot be, before anything starts.

        Raises:
          UserError: the message names the option.
        """
        least = {"seeds": 1, "episodes": 1, "prompt_length": 1, "iterations": 2}
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise UserError(
                    f"{name} = {getattr(self, name)}: expected {minimum} or more"
                )
        rates = self.learning_rates
        if not rates or min(rates) <= 0 or len(set(rates)) < len(rates):
            raise UserError(
                f"learning_rates = {' '.join(map(str, rates))}: expected one or more "
                "positive numbers, each of them once"
            )
        parts = self.algorithm.sampling.completions * self.algorithm.minibatches
        if self.episodes % parts:
            raise UserError(
                f"episodes = {self.episodes}: expected a multiple of {parts}, "
                "completions × minibatches"
            )
        length = self.prompt_length + self.algorithm.sampling.max_new_tokens
        if length > self.model.max_length:
            raise UserError(
                f"prompt_length = {self.prompt_length}: with the response it is "
                f"{length} tokens; model.max_length is {self.model.max_length}"
            )
        if self.model.vocab_size <= FIRST_ID:
            raise UserError(
                f"model.vocab_size = {self.model.vocab_size}: expected more than "
                f"{FIRST_ID}, as prompts have ids from {FIRST_ID} on"
            )


class Member(NamedTuple):
    """What a member differs in from the others."""

    seed: Any  # int; [M] int32 of all together
    learning_rate: Any  # float; [M] float32


def members(config: Config) -> list[Member]:
    """All seeds of the first rate, then of the next."""
    return [
        Member(seed, rate)
        for rate in config.learning_rates
        for seed in range(config.seeds)
    ]


def start(member: Member, *, config: Config) -> PolicyState:
    """A member's policy, and critic, before its first update."""
    key, tx = jax.random.key(member.seed), make_tunable_optimizer(OPTIM, 1)
    network, apply = CausalLM, policy_apply
    if config.algorithm.advantage == "gae":
        network, apply = ActorCritic, actor_critic_apply
    params = init_params(network(config.model), key=key)
    coef = config.algorithm.kl.coef
    state = create_policy_state(apply(config.model), params, tx, kl_coef=coef)
    rate = optax.tree.set(state.opt_state, learning_rate=member.learning_rate)
    return state.replace(opt_state=rate)


def iteration(
    state: Any, ref_params: Params, seed: Array, number: Array, *, config: Config
) -> tuple[Any, Metrics]:
    """One iteration of one member, its prompts drawn in it."""
    key = jax.random.fold_in(jax.random.key(seed), number)
    prompt_key, key = jax.random.split(key)
    network = policy_apply(config.model)
    prompts = draw_prompts(config, prompt_key)
    networks: Any = {"sample_fn": network, "ref_apply_fn": network}
    given = {"key": key, "reward_fn": first_quarter(config.model.vocab_size)}
    return policy_iteration(
        state, prompts, ref_params, config=config.algorithm, **networks, **given
    )


def draw_prompts(config: Config, key: Array) -> TokenBatch:
    """Uniform ids, no padding."""
    rows = config.episodes // config.algorithm.sampling.completions
    shape = (rows, config.prompt_length)
    ones = jnp.ones(shape, jnp.int32)
    return TokenBatch(
        tokens=jax.random.randint(key, shape, FIRST_ID, config.model.vocab_size),
        segment_ids=ones,
        positions=jnp.cumsum(ones, axis=1) - 1,
        mask=jnp.zeros(shape, bool),
    )


def first_quarter(vocab_size: int) -> RewardFn:
    """The share of a response's tokens in the first quarter of the vocabulary."""

    def reward(_: Params, rollout: Rollout) -> Array:
        mask = rollout.batch.mask
        hits = (rollout.batch.tokens < vocab_size // 4) & mask
        return jnp.sum(hits, axis=1) / jnp.maximum(jnp.sum(mask, axis=1), 1)

    return reward
