"""Rewards of PPO: classifiers of transformers by a label, functions of tokens."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from models.hf.cases import assert_one_line
from models.tiny import batch_of

from experiments.networks import load_reward
from experiments.rollouts import make_scorer
from rlhf_jax.data import save_tokenizer, train_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.models import TransformerConfig
from rlhf_jax.parallel import local_devices, replicate, shard, unshard
from rlhf_jax.rewards import repetition_reward
from rlhf_jax.stages import FLOAT32, Stage
from rlhf_jax.types import Rollout

CONFIG = TransformerConfig(
    vocab_size=259,
    d_model=8,
    n_layers=1,
    n_heads=1,
    n_kv_heads=1,
    d_head=8,
    d_ff=16,
    max_length=16,
)


@pytest.fixture(scope="module")
def policy() -> Stage:
    tokenizer = train_tokenizer([], vocab_size=259)
    return Stage(CONFIG, tokenizer, {}, 0, "policy", None, (2,), None)


@pytest.fixture(scope="module")
def classifier(policy, tmp_path_factory):
    """transformers' folder and model, told apart as detoxification does."""
    torch = pytest.importorskip("torch", reason="the oracle of these tests")
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=16,
        pad_token_id=0,
        id2label={0: "nothate", 1: "hate"},
        label2id={"nothate": 0, "hate": 1},
        initializer_range=0.5,
    )
    model = LlamaForSequenceClassification(config).eval()
    folder = tmp_path_factory.mktemp("hub") / "hate"
    model.save_pretrained(folder)
    save_tokenizer(policy.tokenizer, folder)
    return folder, model


def rollout_of(real: list[list[int]], answers: list[list[int]]) -> Rollout:
    """Rows of random tokens; ``answers`` marks those of the policy."""
    batch = batch_of(real)
    tokens = jnp.where(batch.segment_ids > 0, batch.tokens, 0)
    mask = jnp.array(answers) == 1
    batch = dataclasses.replace(batch, tokens=tokens, mask=mask)
    shape = batch.tokens.shape
    return Rollout(
        batch,
        logprobs=jnp.zeros(shape),
        truncated=jnp.zeros(shape[0], bool),
        row=jnp.arange(shape[0]),
        raw_logprobs=jnp.zeros(shape),
        processed_logprobs=jnp.zeros(shape),
    )


ROLLOUT = rollout_of(
    [[0, 1, 1, 1, 1, 0], [1] * 6, [1] * 6, [0, 0, 1, 1, 1, 1]],
    [[0, 0, 0, 1, 1, 0], [0, 0, 1, 1, 1, 1], [0] * 5 + [1], [0, 0, 0, 1, 1, 1]],
)


def score(reward, params, kind, policy) -> np.ndarray:
    devices = local_devices(2)
    placed = replicate(params, devices)
    scorer = make_scorer(reward, placed, kind, policy.tokenizer, devices)
    return np.asarray(unshard(scorer(shard(ROLLOUT, devices))))


@pytest.mark.parametrize("kind", ["logit", "probability"])
@pytest.mark.parametrize(("label", "index"), [("nothate", 0), ("1", 1), ("0", 0)])
def test_a_label_of_a_classifier_is_the_reward(classifier, policy, label, index, kind):
    import torch

    folder, model = classifier
    judge = load_reward(str(folder), kind, policy, FLOAT32, label)
    assert isinstance(judge, Stage) and judge.label == index
    real = np.asarray(ROLLOUT.batch.segment_ids)
    with torch.no_grad():
        logits = model(
            input_ids=torch.tensor(np.asarray(ROLLOUT.batch.tokens)).long(),
            attention_mask=torch.tensor(real).long(),
        ).logits
    expected = logits if kind == "logit" else torch.softmax(logits, -1)
    assert np.ptp(expected.numpy()[:, index]) > 0.01
    found = score(judge, judge.params, kind, policy)
    np.testing.assert_allclose(found, expected.numpy()[:, index], atol=1e-4)


@pytest.mark.parametrize("label", [None, "not hate", "2", "-1", ""])
def test_a_label_must_be_chosen(classifier, policy, label):
    with pytest.raises(UserError) as error:
        load_reward(str(classifier[0]), "logit", policy, FLOAT32, label)
    assert_one_line(error, f"--reward-label {label}", "0 (nothate), 1 (hate)", "hate")


def test_a_classifier_has_no_score(classifier, policy):
    with pytest.raises(UserError) as error:
        load_reward(str(classifier[0]), "score", policy, FLOAT32, "nothate")
    assert_one_line(error, "--reward-kind score", "2 outputs, expected 1")


def test_functions_get_the_token_ids_of_responses(policy):
    got = []

    def reward(completions, completion_ids):
        got.extend(completion_ids)
        assert completions == policy.tokenizer.batch_decode(
            completion_ids, skip_special_tokens=True
        )
        return repetition_reward(1)(completion_ids=completion_ids)

    score(reward, {}, "score", policy)
    tokens = np.asarray(ROLLOUT.batch.tokens)
    expected = [tokens[0, 3:5], tokens[1, 2:], tokens[2, 5:], tokens[3, 3:]]
    assert got == [row.tolist() for row in expected]
