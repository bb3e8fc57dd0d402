"""What one stage leaves is what the next one, or the labelling page, begins with."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from rlhf_jax import checkpoint
from rlhf_jax.data import train_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.models import CausalLM, TransformerConfig, init_params, lora
from rlhf_jax.stages import (
    CHECKPOINTS,
    Stage,
    load_policy,
    load_stage,
    save_model_files,
)

MODEL = TransformerConfig(
    vocab_size=300,
    d_model=8,
    n_layers=1,
    n_heads=1,
    n_kv_heads=1,
    d_head=8,
    d_ff=16,
    max_length=40,
)
PARAMS = init_params(CausalLM(MODEL), key=jax.random.key(0))
LORA = lora.LoraConfig(2)
TOKENIZER = train_tokenizer(["a warm film", "a cold film"], vocab_size=300)


def save(folder: Path, params, *, began: Stage | None = None, **more) -> Path:
    """A run directory with one checkpoint."""
    folder.mkdir()
    save_model_files(folder, MODEL, TOKENIZER, began=began, **more)
    state = {"params": params}
    checkpoint.save(folder / CHECKPOINTS, 1, state, host_state={}, keep=1)
    return folder


def equal(a, b) -> bool:
    return jax.tree.all(jax.tree.map(jnp.array_equal, a, b))


def test_a_policy_is_as_it_was(tmp_path):
    head = {"value_head": {"kernel": jnp.ones((8, 1))}}
    stage = load_policy(save(tmp_path / "ppo", PARAMS | head))
    assert (stage.model, stage.num_outputs) == (MODEL, 0)
    assert stage.tokenizer.get_vocab() == TOKENIZER.get_vocab()
    assert stage.stop_ids == (TOKENIZER.eos_token_id,)
    assert equal(stage.params, PARAMS)


def test_adapters_find_their_base_and_move_with_it(tmp_path):
    (tmp_path / "a").mkdir()
    adapters = lora.init(PARAMS, LORA, key=jax.random.key(1))
    adapters = jax.tree.map(lambda x: x + 0.1, adapters)
    base = load_policy(save(tmp_path / "a/sft", PARAMS))
    save(tmp_path / "a/ppo", adapters, began=base, lora=LORA)
    shutil.move(tmp_path / "a", tmp_path / "b")
    stage = load_stage(tmp_path / "b/ppo", "policy", option="--policy")
    assert stage.lora == LORA and stage.base == str(tmp_path / "b/sft")
    assert equal(stage.params, PARAMS) and equal(stage.adapters, adapters)
    merged = load_policy(tmp_path / "b/ppo")
    assert merged.adapters is None and not equal(merged.params, PARAMS)
    assert equal(merged.params, lora.merge(PARAMS, adapters, LORA))


def test_a_reward_model_does_not_answer(tmp_path):
    folder = save(tmp_path / "reward", PARAMS, num_outputs=1)
    with pytest.raises(UserError, match="holds a reward model, expected a policy"):
        load_policy(folder)


def test_nothing_of_the_kind(tmp_path):
    wanted = "--policy .*: neither the run directory of a finished policy stage"
    with pytest.raises(UserError, match=wanted):
        load_policy(tmp_path)
