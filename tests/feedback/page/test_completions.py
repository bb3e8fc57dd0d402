"""Completions that a policy draws for the page."""

import contextlib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from feedback.page.running import write_rows

from experiments import stages
from experiments.runs import FLOAT32
from rlhf_jax import checkpoint
from rlhf_jax.data import train_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.feedback.page import ServeConfig
from rlhf_jax.feedback.page.completions import load_policy, sample_completions
from rlhf_jax.feedback.page.serve import fill
from rlhf_jax.feedback.page.store import connect
from rlhf_jax.models import CausalLM, TransformerConfig, init_params, lora
from rlhf_jax.sampling import SamplingConfig

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
SAMPLING = SamplingConfig(max_new_tokens=6, completions=3)


@pytest.fixture(scope="module")
def policies(tmp_path_factory) -> Path:
    """Run directories of a policy, of adapters on it, and of a reward model."""
    root, key = tmp_path_factory.mktemp("policies"), jax.random.key(0)
    tokenizer = train_tokenizer(["a warm film", "a cold film"], vocab_size=300)
    params = init_params(CausalLM(MODEL), key=key)
    adapters = lora.init(params, lora.LoraConfig(2), key=key)
    adapters = jax.tree.map(lambda x: x + 0.1, adapters)
    kinds = {"sft": (params, {}), "reward": (params, {"num_outputs": 1})}
    kinds["lora"] = adapters, {"lora": lora.LoraConfig(2)}
    for name, (saved, more) in kinds.items():
        began = None
        if name == "lora":
            began = stages.load_policy(root / "sft", FLOAT32)
        folder = root / name
        folder.mkdir()
        stages.save_model_files(folder, MODEL, tokenizer, began=began, **more)
        state = {"params": saved}
        checkpoint.save(folder / "checkpoints", 1, state, host_state={}, keep=1)
    return root


@pytest.fixture(scope="module")
def policy(policies):
    return load_policy(policies / "sft")


@pytest.mark.parametrize("name", ["sft", "lora"])
def test_it_is_the_policy_that_the_scripts_load(policies, policy, name):
    mine = load_policy(policies / name)
    theirs = stages.load_policy(policies / name, FLOAT32)
    assert (mine.model, mine.stop_ids) == (theirs.model, theirs.stop_ids)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, mine.params, theirs.params))
    if name == "lora":
        same = jax.tree.map(jnp.array_equal, mine.params, policy.params)
        assert not jax.tree.all(same)


def test_a_reward_model_does_not_answer(policies):
    with pytest.raises(UserError, match="holds a reward model, expected a policy"):
        load_policy(policies / "reward")


def test_nothing_of_the_kind(tmp_path):
    with pytest.raises(UserError, match="neither the run directory of a policy"):
        load_policy(tmp_path)


def test_each_prompt_has_its_completions_of_its_own(policy):
    prompts = [f"a {i}" for i in range(18)]  # more than one batch
    drawn = dict(sample_completions(policy, prompts, SAMPLING, seed=0))
    assert list(drawn) == prompts and {len(x) for x in drawn.values()} == {3}
    assert len({text for texts in drawn.values() for text in texts}) > 40
    other = dict(sample_completions(policy, prompts, SAMPLING, seed=1))
    assert drawn != other


def test_a_prompt_must_leave_room(policy):
    with pytest.raises(UserError, match="max_new_tokens = 39"):
        list(sample_completions(policy, ["a"], SamplingConfig(39), seed=0))
    with pytest.raises(UserError, match="tokens"):
        list(sample_completions(policy, ["a" * 60], SAMPLING, seed=0))


def test_prompts_answered_before_are_not_answered_again(policies, tmp_path, capsys):
    rows = [{"prompt": "a warm"}, {"prompt": "a cold"}, {"prompt": "a warm"}]
    options = {"policy": policies / "sft", "sampling": SAMPLING}
    config = ServeConfig(
        tmp_path, prompts=write_rows(tmp_path / "p.jsonl", rows[:1]), **options
    )
    with contextlib.closing(connect(tmp_path, create=True)) as db:
        fill(db, config)
        [first] = db.execute("SELECT * FROM items").fetchall()
        write_rows(tmp_path / "p.jsonl", rows)
        fill(db, config)
        assert "answers 1 prompts" in capsys.readouterr().out.splitlines()[-1]
        items = db.execute("SELECT * FROM items ORDER BY number").fetchall()
    assert items[0] == first
    assert [row["prompt"] for row in items] == ["a warm", "a cold"]
