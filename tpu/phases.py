"""What an iteration of an experiment computes, from shapes alone: the scripts' steps.

A phase is a step of `rlhf_jax.steps` with the networks, states and batches that
`experiments` gives it. Nothing is allocated: leaves are ``jax.ShapeDtypeStruct``.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from experiments.rollouts import score_step
from experiments.runs import split_params
from rlhf_jax.models import (
    CausalLM,
    ScoreModel,
    TransformerConfig,
    init_params,
    lora,
    policy_apply,
    score_apply,
    separate_critic_apply,
)
from rlhf_jax.optim import OptimConfig, make_optimizer
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.steps import (
    POLICY_PRESETS,
    PolicyConfig,
    PreferenceConfig,
    create_policy_state,
    create_state,
    experience_step,
    pairwise_terms,
    policy_step,
    preference_step,
    reward_step,
    sample_step,
    sft_step,
)
from rlhf_jax.types import PreferenceBatch, TokenBatch

Algorithm = Literal["sft", "reward", "dpo", "ppo", "grpo"]
OPTIM = OptimConfig(learning_rate=1e-5, schedule="constant")


@dataclasses.dataclass(frozen=True)
class Work:
    """An iteration: of which algorithm, on how much."""

    algorithm: Algorithm
    model: TransformerConfig  # numerics among it; max_length is not looked at
    rows: int  # demonstrations, pairs or episodes, all chips together
    prompt_length: int
    new_tokens: int  # of a response; the rest of a row
    completions: int = 1  # of a prompt, of grpo
    adapters: lora.LoraConfig | None = None
    optim: OptimConfig = OPTIM
    micro_batches: int = 1
    judged: bool = True  # the reward of ppo and grpo is a model, not a function
    layout: Callable[[Any], Any] = lambda params: params  # see `models.decode_layout`

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.prompt_length + self.new_tokens


class Phase(NamedTuple):
    """``step(held[0], rows, *held[1:])``, once an iteration."""

    name: str
    step: Callable
    held: tuple[Any, ...]  # trees that lie on the chips in parts
    rows: Any  # arrays that are cut by rows
    donated: bool  # held[0] is replaced by the first of what the step returns


class Iteration(NamedTuple):
    """Phases, and what lies on the chips all the time."""

    phases: list[Phase]
    resident: tuple[Any, ...]


def make_iteration(work: Work) -> Iteration:
    """The phases of an iteration, by its algorithm."""
    make = {"sft": _sft, "reward": _reward, "dpo": _dpo}.get(work.algorithm, _online)
    return make(work)


def _sft(work: Work) -> Iteration:
    policy, frozen = _split(CausalLM(work.model), work)
    state = _state(create_state, policy_apply(work.model), policy, work)
    step = functools.partial(sft_step, micro_batches=work.micro_batches)
    batch = token_shapes(work.rows, work.length)
    return Iteration(
        [Phase("update", step, (state, frozen), batch, True)], (state, frozen)
    )


def _reward(work: Work) -> Iteration:
    judge, frozen = _split(ScoreModel(work.model), work)
    state = _state(create_state, score_apply(work.model), judge, work)
    step = functools.partial(
        reward_step, terms_fn=pairwise_terms, micro_batches=work.micro_batches
    )
    phase = Phase("update", step, (state, frozen), _pairs(work), True)
    return Iteration([phase], (state, frozen))


def _dpo(work: Work) -> Iteration:
    reference = _params(CausalLM(work.model))
    policy, frozen = _adapted(reference, work)
    apply_fn = policy_apply(work.model)
    state = _state(create_state, apply_fn, policy, work)
    config = PreferenceConfig(micro_batches=work.micro_batches)
    step = functools.partial(preference_step, ref_apply_fn=apply_fn, config=config)
    phase = Phase("update", step, (state, reference, frozen), _pairs(work), True)
    return Iteration([phase], (state, reference))


def _online(work: Work) -> Iteration:
    """Sample, score, compare with the reference, update: PPO and what is like it."""
    config, apply_fn = policy_config(work), policy_apply(work.model)
    reference, judge = _params(CausalLM(work.model)), _params(ScoreModel(work.model))
    nets, frozen = _adapted(reference, work)
    layout, of_policy, train_fn = work.layout, lambda params: params, apply_fn
    if config.advantage == "gae":  # the critic is a network that begins as the judge
        critic, critic_frozen = _adapted(judge, work)
        nets = {"policy": nets, "critic": critic}
        frozen = frozen and {"policy": frozen, "critic": critic_frozen}
        of_policy = lambda params: params["policy"]
        train_fn = separate_critic_apply(work.model, work.model)
    create = functools.partial(create_policy_state, kl_coef=config.kl.coef)
    state = _state(create, train_fn, nets, work)
    key = jax.random.key(0)

    def sample(params: Any, asked: Any, frozen: Any) -> Any:
        prompts, row = asked
        given: Any = {"apply_fn": apply_fn, "config": config.sampling, "key": key}
        given["layout"] = lambda params: layout(of_policy(params))
        return sample_step(params, prompts, row, frozen, **given)

    def compare(state: Any, scored: Any, reference: Any, frozen: Any) -> Any:
        rollout, scores = scored
        given: Any = {"ref_apply_fn": apply_fn, "config": config}
        return experience_step(state, reference, rollout, scores, frozen, **given)

    update = functools.partial(policy_step, key=key, config=config)
    score = functools.partial(
        score_step, score_fn=score_apply(work.model), kind="score"
    )
    prompts = work.rows // work.completions
    asked = token_shapes(prompts, work.prompt_length), shape(jnp.int32, prompts)
    rollout = jax.eval_shape(sample, state.params, asked, frozen)
    scored = rollout, shape(jnp.float32, work.rows)
    experience = jax.eval_shape(compare, state, scored, reference, frozen)[0]
    judging = lambda params, batch: score(params, batch)
    judged = [Phase("score", judging, (judge,), rollout.batch, False)]
    phases = [
        Phase("sample", sample, (state.params, frozen), asked, False),
        *(judged if work.judged else []),
        Phase("compare", compare, (state, reference, frozen), scored, False),
        Phase("update", update, (state, frozen), experience, True),
    ]
    has_judge = work.judged or config.advantage == "gae"
    return Iteration(phases, (state, reference, judge if has_judge else None))


def policy_config(work: Work) -> PolicyConfig:
    """PPO's or GRPO's, as their presets have it."""
    sampling = SamplingConfig(
        work.new_tokens, completions=work.completions, stop_ids=(1,)
    )
    config = POLICY_PRESETS[work.algorithm](sampling)
    return dataclasses.replace(config, micro_batches=work.micro_batches)


def token_shapes(rows: int, tokens: int) -> TokenBatch:
    """Of a TokenBatch."""
    ids, mask = shape(jnp.int32, rows, tokens), shape(jnp.bool_, rows, tokens)
    return TokenBatch(ids, ids, ids, mask)


def shape(dtype: Any, *sizes: int) -> Any:
    """Of an array."""
    return jax.ShapeDtypeStruct(sizes, dtype)


def _pairs(work: Work) -> PreferenceBatch:
    side = token_shapes(work.rows, work.length)
    number, judge = shape(jnp.float32, work.rows), shape(jnp.int32, work.rows)
    return PreferenceBatch(side, side, number, number, judge)


def _params(network: Any) -> Any:
    init = functools.partial(init_params, network)
    return jax.eval_shape(lambda key: init(key=key), jax.random.key(0))


def _split(network: Any, work: Work) -> tuple[Any, Any]:
    return _adapted(_params(network), work)


def _adapted(params: Any, work: Work) -> tuple[Any, Any]:
    """(trained, frozen), as the scripts cut them; of the frozen the same leaves."""
    if work.adapters is None:
        return jax.tree.map(lambda x: shape(x.dtype, *x.shape), params), None
    split = functools.partial(split_params, params, work.adapters)
    abstract = lambda x: shape(x.dtype, *x.shape) if isinstance(x, jax.Array) else x
    return jax.tree.map(abstract, split(key=jax.random.key(0)))


def _state(create: Callable, apply_fn: Any, params: Any, work: Work) -> Any:
    tx = make_optimizer(work.optim, 1)
    return jax.eval_shape(lambda params: create(apply_fn, params, tx), params)
