"""A policy that is asked: padding, batches, chat templates and the judge command."""

import json
import math

import jax
import numpy as np
import pytest
from data.chat_templates import CHATML, make_tokenizer

from rlhf_jax import checkpoint, stages
from rlhf_jax.data import left_padded, read_rows, train_tokenizer
from rlhf_jax.data.records import preferences, rankings
from rlhf_jax.errors import UserError
from rlhf_jax.feedback import make_ask, sample_completions
from rlhf_jax.feedback.__main__ import main as command
from rlhf_jax.feedback.assistant import question_ids
from rlhf_jax.models import CausalLM, TransformerConfig, init_params, policy_apply
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.stages import Stage

MODEL = TransformerConfig(
    vocab_size=350,
    d_model=16,
    n_layers=2,
    n_heads=2,
    n_kv_heads=1,
    d_head=8,
    d_ff=32,
    max_length=64,
)
QUESTIONS = ["is it good ?", "which of these films is it , a or b :", "?", "b or a"]

PRINCIPLES = """
[[principles]]
name = "a"
critique = "b"
revision = "c"
preference = "?"
[templates]
preference = "{first}{second}{request}"
answers = ["a", "b"]
"""
RUBRIC = """
[[criteria]]
name = "a"
question = "b"
[scale]
template = "{response} {request}"
answers = ["a", "b", "c"]
"""


def make_assistant(tokenizer) -> Stage:
    """Random parameters, five times as large: an opinion on everything."""
    params = init_params(CausalLM(MODEL), key=jax.random.key(0))
    params = jax.tree.map(lambda x: 5 * x, params)
    return Stage(
        MODEL,
        tokenizer,
        params,
        num_outputs=0,
        source="",
        base=None,
        stop_ids=(tokenizer.eos_token_id,),
        hf_config=None,
    )


@pytest.fixture(scope="module")
def assistant() -> Stage:
    return make_assistant(train_tokenizer(["a film a film b or a"], vocab_size=300))


def alone(assistant: Stage, ids, answers) -> np.ndarray:
    """log P(answer | question) of one question without padding."""
    batch = left_padded([ids], length=len(ids), pad_id=0)
    logits = policy_apply(assistant.model)(assistant.params, batch).logits
    z = np.asarray(logits, np.float64)[0, len(ids) - 1][answers]
    return z - z.max() - math.log(np.exp(z - z.max()).sum())


def test_answers_are_those_of_each_question_alone(assistant):
    """Padding, the batch and the filler rows of the last one change nothing."""
    tokenizer = assistant.tokenizer
    tokens = tokenizer.convert_tokens_to_ids(["a", "b", "?"])
    found = make_ask(assistant, batch_size=3)(QUESTIONS, ["a", "b", "?"])
    asked = question_ids(assistant, QUESTIONS, room=0)
    expected = [alone(assistant, ids, tokens) for ids in asked]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(np.exp(found).sum(1), 1.0, rtol=1e-5)
    assert np.ptp(found, axis=0).min() > 0.1  # the questions do differ


def test_no_question_no_answer(assistant):
    assert make_ask(assistant)([], ["a", "b"]).shape == (0, 2)


@pytest.mark.parametrize(
    "answers, complaint",
    [
        (["a", "quite another"], "'quite another': .* tokens .* expected one"),
        (["a", "a"], "two have the same token"),
    ],
)
def test_answers_are_one_token_each(assistant, answers, complaint):
    with pytest.raises(UserError, match=complaint):
        make_ask(assistant)(["?"], answers)


def test_a_long_question_is_refused(assistant):
    with pytest.raises(UserError, match="question 1: .* more than"):
        make_ask(assistant)(["?", "!" * 70], ["a", "b"])


def test_a_question_to_a_chat_model_is_a_turn():
    """Tokens as transformers' own rendering; answers without their space."""
    tokenizer = make_tokenizer(CHATML)
    chat = make_assistant(tokenizer)
    [ids] = question_ids(chat, ["2 + 2?"], room=0)
    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": "2 + 2?"}],
        add_generation_prompt=True,
        return_dict=False,
    )
    assert list(ids) == list(expected)
    found = make_ask(chat)(["2 + 2?"], [" A", " B"])
    tokens = [tokenizer.convert_tokens_to_ids(x) for x in "AB"]
    np.testing.assert_allclose(found[0], alone(chat, ids, tokens), atol=1e-4)
    with pytest.raises(UserError, match="question 0: 7. tokens, the context of 64"):
        make_ask(chat)(["!" * 60], [" A", " B"])


def test_a_chat_model_completes_a_turn():
    chat = make_assistant(make_tokenizer(CHATML))
    sampling = SamplingConfig(max_new_tokens=4, completions=2)
    [(prompt, texts)] = sample_completions(chat, ["2 + 2?"], sampling, seed=0)
    assert prompt == "2 + 2?" and len(texts) == 2
    with pytest.raises(UserError, match="leaves 4; shorten"):
        tight = SamplingConfig(max_new_tokens=60)
        next(sample_completions(chat, ["2 + 2?"], tight, seed=0))


@pytest.fixture(scope="module")
def judge(assistant, tmp_path_factory):
    """The assistant as a run directory, and rows for it."""
    root = tmp_path_factory.mktemp("judge")
    run = root / "run"
    run.mkdir()
    stages.save_model_files(run, MODEL, assistant.tokenizer, began=None)
    state = {"params": assistant.params}
    checkpoint.save(run / "checkpoints", 1, state, host_state={}, keep=1)
    rows = [
        {"prompt": "p", "completions": ["one", "two", "three", "two"]},
        {"prompt": "q", "completions": ["same", "same"]},
        {"prompt": "r", "completions": ["four", "five"]},
    ]
    (root / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (root / "principles.toml").write_text(PRINCIPLES)
    (root / "rubric.toml").write_text(RUBRIC)
    return root


@pytest.mark.parametrize("how", ["constitution", "rubric"])
def test_the_command_writes_pairs(judge, how, tmp_path, capsys):
    file = {"constitution": "principles.toml", "rubric": "rubric.toml"}[how]
    out = tmp_path / "pairs.jsonl"
    asked = ["--model", str(judge / "run"), f"--{how}", str(judge / file)]
    command(["judge", str(judge / "rows.jsonl"), *asked, "--out", str(out)])
    said = capsys.readouterr().out
    assert "1 rows left out" in said and "both orders name the same" in said
    pairs = preferences(read_rows(out))
    assert {(p.prompt, *sorted([p.chosen, p.rejected])) for p in pairs} <= {
        ("p", "one", "two"),
        ("p", "one", "three"),
        ("p", "three", "two"),
        ("r", "five", "four"),
    }
    assert len(pairs) >= 2 and all(0 < p.weight <= 1 for p in pairs)


def test_the_command_writes_rankings_like_an_annotator(judge, tmp_path):
    out = tmp_path / "rankings.jsonl"
    asked = ["--model", str(judge / "run"), "--rubric", str(judge / "rubric.toml")]
    command(
        ["judge", str(judge / "rows.jsonl"), *asked, "--out", str(out)]
        + ["--as-annotator", "9"]
    )
    found = rankings(read_rows(out))
    assert [r.annotator for r in found] == [9, 9]
    assert [len(r.completions) for r in found] == [3, 2]


@pytest.mark.parametrize("more", [[], ["--question", "?", "--rubric", "r.toml"]])
def test_the_command_wants_one_question(judge, more):
    asked = ["judge", str(judge / "rows.jsonl"), "--model", "m", "--out", "o.jsonl"]
    with pytest.raises(SystemExit, match="error: .* expected one of them"):
        command([*asked, *more])
