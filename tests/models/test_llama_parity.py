"""The decoder is Llama's: same logits as transformers' torch model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.tiny import batch_of

from rlhf_jax.models import TransformerConfig, policy_apply
from rlhf_jax.types import Params

torch = pytest.importorskip("torch", reason="the oracle of these tests")


def _llama(config: TransformerConfig):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            intermediate_size=config.d_ff,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            head_dim=config.d_head,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            max_position_embeddings=config.max_length,
            tie_word_embeddings=config.tie_embeddings,
        )
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def _params(model, config: TransformerConfig) -> Params:
    """torch's [out, in], layer by layer, as our [L, in, out]."""
    weights = {name: w.numpy() for name, w in model.state_dict().items()}
    names = [f"model.layers.{i}." for i in range(config.n_layers)]
    stack = lambda name: jnp.stack([weights[n + name + ".weight"].T for n in names])
    kernels = lambda part, *projections: {
        p: {"kernel": stack(f"{part}.{p}")} for p in projections
    }
    blocks = {
        "attn_norm": {"scale": stack("input_layernorm")},
        "attn": kernels("self_attn", "q_proj", "k_proj", "v_proj", "o_proj"),
        "mlp_norm": {"scale": stack("post_attention_layernorm")},
        "mlp": kernels("mlp", "gate_proj", "up_proj", "down_proj"),
    }
    trunk = {
        "embed": {"embedding": jnp.asarray(weights["model.embed_tokens.weight"])},
        "blocks": blocks,
        "final_norm": {"scale": jnp.asarray(weights["model.norm.weight"])},
    }
    if config.tie_embeddings:
        return {"trunk": trunk}
    return {
        "trunk": trunk,
        "lm_head": {"kernel": jnp.asarray(weights["lm_head.weight"].T)},
    }


@pytest.mark.parametrize("tie", [False, True])
def test_logits_are_those_of_torch(config, tie):
    config = dataclasses.replace(
        config, tie_embeddings=tie, rope_theta=500.0, norm_eps=1e-3
    )
    model = _llama(config)
    batch = batch_of([[0, 0, 0, 1, 1, 1, 1, 1], [1] * 8, [0] * 7 + [1]])
    as_torch = lambda x: torch.tensor(np.asarray(x), dtype=torch.int64)
    with torch.no_grad():
        expected = model(
            input_ids=as_torch(batch.tokens),
            attention_mask=as_torch(batch.mask),
            position_ids=as_torch(batch.positions),
        ).logits.numpy()
    forward = jax.jit(policy_apply(config))
    logits = np.asarray(forward(_params(model, config), batch).logits)
    real = np.asarray(batch.mask)
    assert np.abs(expected[real]).max() > 1  # else the tolerance would mean little
    np.testing.assert_allclose(logits[real], expected[real], atol=1e-4)
