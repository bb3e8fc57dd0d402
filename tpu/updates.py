"""The updates that the scripts of this folder compile, from shapes alone."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlhf_jax.models import (
    CausalLM,
    ScoreModel,
    TransformerConfig,
    init_params,
    policy_apply,
    separate_critic_apply,
)
from rlhf_jax.optim import OptimConfig, make_optimizer
from rlhf_jax.sharding import DATA, FSDP, make_mesh, on_mesh, state_shardings
from rlhf_jax.steps import (
    PolicyConfig,
    PreferenceConfig,
    create_policy_state,
    create_state,
    policy_step,
    preference_step,
    sft_step,
)
from rlhf_jax.types import Experience, PreferenceBatch, Rollout, TokenBatch


def compile_step(
    step: Callable, mesh: Mesh, state: Any, batch: Any, *frozen: Any
) -> Any:
    """``step(state, batch, *frozen)`` compiled for a mesh, the state donated.

    From shapes: state and frozen parameters in parts (`state_shardings`), the rows of
    the batch cut over data and fsdp.
    """
    shape = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
    cut = NamedSharding(mesh, PartitionSpec((DATA, FSDP)))
    where = state_shardings((state, frozen), mesh)
    state, frozen = jax.tree.map(shape, (state, frozen), where)
    batch = jax.tree.map(lambda x: shape(x, cut), batch)
    step = on_mesh(step, mesh)
    step = jax.jit(step, out_shardings=(where[0], None), donate_argnums=0)
    return step.lower(state, batch, *frozen).compile()


def state_shapes(create: Callable, apply_fn: Any, init: Callable) -> Any:
    """Of ``create(apply_fn, parameters, optimiser)``, the parameters by ``init``."""
    tx = make_optimizer(OptimConfig(learning_rate=1e-5, schedule="constant"), 1)
    whole = lambda key: create(apply_fn, init(key=key), tx)
    return jax.eval_shape(whole, jax.random.key(0))


def batch_shapes(rows: int, tokens: int) -> TokenBatch:
    """Of a TokenBatch."""
    ids, mask = _shape(jnp.int32, rows, tokens), _shape(jnp.bool_, rows, tokens)
    return TokenBatch(ids, ids, ids, mask)


def compile_sft(
    model: TransformerConfig, devices: Sequence[Any], rows: int, **parts: int
) -> Any:
    """The compiled update of SFT over devices; ``parts`` are those of `make_mesh`."""
    init = functools.partial(init_params, CausalLM(model))
    state = state_shapes(create_state, policy_apply(model), init)
    batch = batch_shapes(rows, model.max_length)
    return compile_step(sft_step, make_mesh(devices, **parts), state, batch)


def compile_dpo(model: TransformerConfig, devices: Any, rows: int) -> Any:
    """The compiled update of DPO, its reference forward pass included."""
    init = functools.partial(init_params, CausalLM(model))
    state = state_shapes(create_state, policy_apply(model), init)
    side, number = (
        batch_shapes(rows // 2, model.max_length),
        _shape(jnp.float32, rows // 2),
    )
    batch = PreferenceBatch(side, side, number, number, number)
    step = functools.partial(
        preference_step, ref_apply_fn=policy_apply(model), config=PreferenceConfig()
    )
    return compile_step(step, make_mesh(devices), state, batch, state.params)


def compile_ppo(model: TransformerConfig, devices: Any, rows: int) -> Any:
    """The compiled updates of PPO: all epochs, a critic of the policy's size."""

    def init(key: Any) -> Any:
        policy, critic = CausalLM(model), ScoreModel(model)
        return {
            "policy": init_params(policy, key=key),
            "critic": init_params(critic, key=key),
        }

    create = functools.partial(create_policy_state, kl_coef=0.05)
    state = state_shapes(create, separate_critic_apply(model, model), init)
    token, number = (
        _shape(jnp.float32, rows, model.max_length),
        _shape(jnp.float32, rows),
    )
    batch = batch_shapes(rows, model.max_length)
    rollout = Rollout(
        batch,
        logprobs=token,
        truncated=_shape(jnp.bool_, rows),
        row=_shape(jnp.int32, rows),
        raw_logprobs=token,
        processed_logprobs=token,
    )
    experience = Experience(rollout, token, token, token, token, token, number)
    step = lambda state, experience: policy_step(
        state, experience, key=jax.random.key(0), config=PolicyConfig()
    )
    return compile_step(step, make_mesh(devices), state, experience)


COMPILES = {"sft": compile_sft, "dpo": compile_dpo, "ppo": compile_ppo}


def _shape(dtype: Any, *shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)
