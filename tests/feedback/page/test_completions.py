"""Completions that a policy draws for the page."""

import contextlib
from pathlib import Path

import jax
import pytest
from feedback.page.running import write_rows

from rlhf_jax import checkpoint
from rlhf_jax.data import train_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.feedback import sample_completions
from rlhf_jax.feedback.page import ServeConfig
from rlhf_jax.feedback.page.serve import fill
from rlhf_jax.feedback.page.store import connect
from rlhf_jax.models import CausalLM, TransformerConfig, init_params
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.stages import CHECKPOINTS, load_policy, save_model_files

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
def run_dir(tmp_path_factory) -> Path:
    """Of a policy."""
    folder = tmp_path_factory.mktemp("sft")
    tokenizer = train_tokenizer(["a warm film", "a cold film"], vocab_size=300)
    save_model_files(folder, MODEL, tokenizer, began=None)
    state = {"params": init_params(CausalLM(MODEL), key=jax.random.key(0))}
    checkpoint.save(folder / CHECKPOINTS, 1, state, host_state={}, keep=1)
    return folder


@pytest.fixture(scope="module")
def policy(run_dir):
    return load_policy(run_dir)


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


def test_prompts_answered_before_are_not_answered_again(run_dir, tmp_path, capsys):
    rows = [{"prompt": "a warm"}, {"prompt": "a cold"}, {"prompt": "a warm"}]
    options = {"policy": run_dir, "sampling": SAMPLING}
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
