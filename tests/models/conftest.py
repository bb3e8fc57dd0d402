"""A decoder that compiles in a second."""

import jax
import pytest
from models.tiny import randomize

from rlhf_jax.models import CausalLM, TransformerConfig, init_params, policy_apply
from rlhf_jax.types import ApplyFn, Params


@pytest.fixture(scope="session")
def config() -> TransformerConfig:
    return TransformerConfig(
        vocab_size=23,
        d_model=16,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        d_head=6,
        d_ff=24,
        max_length=16,
    )


@pytest.fixture(scope="session")
def params(config: TransformerConfig) -> Params:
    """Random everywhere, norm scales and heads included."""
    return randomize(init_params(CausalLM(config), key=jax.random.key(1)))


@pytest.fixture(scope="session")
def forward(config: TransformerConfig) -> ApplyFn:
    return jax.jit(policy_apply(config), static_argnames="cache_size")
