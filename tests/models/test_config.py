"""Options are checked where they are given."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from rlhf_jax.models import CausalLM, TransformerConfig, num_params
from rlhf_jax.types import TokenBatch


@pytest.mark.parametrize(
    "change, message",
    [
        ({"vocab_size": 0}, "vocab_size=0: set it above 0"),
        ({"max_length": -1}, "max_length=-1: set it above 0"),
        ({"scan_unroll": 0}, "scan_unroll=0: set it above 0"),
        ({"norm_eps": 0.0}, "norm_eps=0.0: set it above 0"),
        ({"n_kv_heads": 3}, "n_kv_heads=3 does not divide n_heads=4"),
        ({"d_head": 5}, "5 rotary entries in heads of d_head=5"),
        ({"dtype": "float16"}, "dtype='float16': set it to 'float32' or 'bfloat16'"),
        ({"param_dtype": "f32"}, "param_dtype='f32': set it to"),
    ],
)
def test_refuses_what_no_decoder_can_have(config, change, message):
    with pytest.raises(ValueError, match=message) as error:
        dataclasses.replace(config, **change)
    assert "\n" not in str(error.value)


def test_survives_json(config):
    text = json.dumps(dataclasses.asdict(config))
    assert TransformerConfig.from_json(json.loads(text)) == config


@pytest.mark.parametrize("tie", [False, True])
def test_num_params_is_what_init_makes(config, tie):
    config = dataclasses.replace(config, tie_embeddings=tie, n_layers=3)
    one = jnp.ones((1, 1), jnp.int32)
    batch = TokenBatch(one, one, one, one > 0)
    shapes = jax.eval_shape(CausalLM(config).init, jax.random.key(0), batch)["params"]
    assert ("lm_head" in shapes) is not tie
    assert num_params(config) == sum(leaf.size for leaf in jax.tree.leaves(shapes))
