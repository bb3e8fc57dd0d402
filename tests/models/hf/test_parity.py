"""Every family is transformers' torch model of it: logits, tokens, gradients, scores.

The oracle reads each sequence alone and without padding.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.hf.cases import CASES, DEFAULTS, Case, torch_logits, torch_model
from models.tiny import batch_of, quick_jit

from rlhf_jax.masking import masked_mean
from rlhf_jax.models import policy_apply
from rlhf_jax.models.heads import score_apply
from rlhf_jax.models.hf import Kind, Pretrained, label_names, load_pretrained
from rlhf_jax.models.hf.weights import flatten
from rlhf_jax.ops import supervised_loss
from rlhf_jax.rewards import learned_reward, sequence_scores
from rlhf_jax.sampling import SamplingConfig, generate
from rlhf_jax.steps.forward import policy_forward
from rlhf_jax.types import TokenBatch

torch = pytest.importorskip("torch", reason="the oracle of these tests")
# Compiles twice as fast; the programs run for milliseconds.

# Padded on the right, on the left, and three sequences packed.
ROWS = [
    [1] * 17 + [0] * 7,
    [0] * 5 + [1] * 19,
    [1] * 9 + [2] * 8 + [3] * 5 + [0] * 2,
]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Small products are slower in several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def of_cases(cases):
    return pytest.mark.parametrize("case", cases, ids=str)


def batch_in(rows: list[list[int]]) -> TokenBatch:
    """Random tokens in these segments, and under padding; never 0."""
    batch = batch_of(rows)
    tokens = np.random.default_rng(1).integers(3, 97, batch.tokens.shape)
    return dataclasses.replace(batch, tokens=jnp.asarray(tokens, jnp.int32))


def sequences(batch: TokenBatch) -> list[tuple[np.ndarray, np.ndarray]]:
    """(where, tokens) of every sequence; where is [T, 2], rows and columns."""
    ids, tokens = np.asarray(batch.segment_ids), np.asarray(batch.tokens)
    found = []
    for row in range(len(ids)):
        for segment in range(1, ids[row].max() + 1):
            columns = np.flatnonzero(ids[row] == segment)
            where = np.stack([np.full_like(columns, row), columns], axis=1)
            found.append((where, tokens[row, columns]))
    return found


def load(model, folder: Path, case: Case, kind: Kind = "policy") -> Pretrained:
    """What transformers wrote, as ours."""
    model.save_pretrained(folder)
    found = load_pretrained(folder, kind=kind)
    if case.max_length is None:
        return found
    config = dataclasses.replace(found.config, max_length=case.max_length)
    return found._replace(config=config)


@functools.cache
def oracle(index: int) -> tuple[Any, list[np.ndarray]]:
    """(model, logits of every sequence) of a case."""
    model = torch_model(CASES[index])
    found = [torch_logits(model, tokens) for _, tokens in sequences(batch_in(ROWS))]
    return model, found


@pytest.mark.fault(27)
@of_cases(CASES)
def test_logits_are_those_of_torch(case, tmp_path):
    model, expected = oracle(CASES.index(case))
    found = load(model, tmp_path / "theirs", case)
    batch, apply_fn = batch_in(ROWS), quick_jit(policy_apply(found.config))
    logits = np.asarray(apply_fn(found.params, batch).logits)
    assert len(expected) == 5
    for (where, _), theirs in zip(sequences(batch), expected, strict=True):
        assert np.abs(theirs).max() > 1  # else the tolerance would mean little
        np.testing.assert_allclose(logits[tuple(where.T)], theirs, atol=1e-4, rtol=0)


@of_cases([case for case in CASES if case not in DEFAULTS])
def test_the_option_matters(case):
    """Else its parity would say nothing: the same weights give other logits."""
    default = next(d for d in DEFAULTS if d.family == case.family)
    model, logits = oracle(CASES.index(case))
    plain_model, plain = oracle(CASES.index(default))
    weights, plain_weights = model.state_dict(), plain_model.state_dict()
    shapes = {name: w.shape for name, w in weights.items()}
    if shapes != {name: w.shape for name, w in plain_weights.items()}:
        return  # loading fails where it is not honoured
    if any(not torch.equal(plain_weights[name], w) for name, w in weights.items()):
        assert case.config.keys() == {"tie_word_embeddings"}
        return  # the same names, once tied and once not
    assert max(np.abs(a - b).max() for a, b in zip(logits, plain, strict=True)) > 5e-4


@of_cases([case for case in CASES if case.greedy])
def test_greedy_tokens_are_those_of_torch(case, tmp_path):
    model = torch_model(case)
    found = load(model, tmp_path / "theirs", case)
    prompts = batch_in([[0] * 7 + [1] * 5, [1] * 12])
    answer = functools.partial(
        generate,
        policy_apply(found.config),
        config=SamplingConfig(max_new_tokens=64, top_k=1),
    )
    rollout = quick_jit(answer)(found.params, prompts, key=jax.random.key(0))
    ours = np.asarray(rollout.batch.tokens)[:, 12:]
    model.generation_config.eos_token_id = None
    for row, (_, prompt) in enumerate(sequences(prompts)):
        ids = torch.tensor(prompt[None].astype(np.int64))
        theirs = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=64,
        )[0, len(prompt) :].numpy()
        assert ours[row].tolist() == theirs.tolist()
    assert len(set(ours.ravel().tolist())) > 10  # not one token again and again


# The softmax does not see what all keys have in common: this gradient is 0.
ZERO = "trunk/blocks/attn/k_proj/bias"


@of_cases([case for case in CASES if case.gradient])
def test_gradients_are_those_of_torch(case, tmp_path):
    model = torch_model(case)
    found = load(model, tmp_path / "theirs", case)
    batch = batch_in(ROWS)
    batch = dataclasses.replace(
        batch, mask=(batch.segment_ids > 0) & (batch.positions >= 3)
    )

    def loss(params):
        policy = policy_forward(
            policy_apply(found.config), params, batch, temperature=1.0
        )
        terms, _ = supervised_loss(policy.logprobs, batch.mask)
        return masked_mean(terms, batch.mask)

    ours = flatten(quick_jit(jax.grad(loss))(found.params))
    count = int(np.asarray(batch.mask).sum())
    for _, tokens in sequences(batch):
        ids = torch.tensor(tokens[None].astype(np.int64))
        logits = model(input_ids=ids, use_cache=False).logits[0]
        nll = torch.nn.functional.cross_entropy(
            logits[2:-1], ids[0, 3:], reduction="sum"
        )
        (nll / count).backward()
    # The gradients as a checkpoint: loading it brings them into our layout.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
    theirs = flatten(load(model, tmp_path / "gradients", case).params)
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        size = np.linalg.norm(expected)
        if case.family == "gpt2" and name == ZERO:
            assert size < 1e-6 and np.linalg.norm(ours[name]) < 1e-6
            continue
        assert size > 1e-4, name
        assert np.linalg.norm(ours[name] - expected) < 1e-4 * size, name


def classified(case, labels, folder):
    """A classifier as it was loaded, a batch, and torch's logits of it [B, labels]."""
    model = torch_model(case, "reward", labels=labels)
    found = load(model, folder, case, kind="reward")
    batch = batch_in([[1] * 17 + [0] * 7, [1] * 24, [1] * 3 + [0] * 21])
    real = np.asarray(batch.mask)
    tokens = np.where(real, np.asarray(batch.tokens), 0)  # theirs looks for the id 0
    with torch.no_grad():
        expected = model(
            input_ids=torch.tensor(tokens.astype(np.int64)),
            attention_mask=torch.tensor(real.astype(np.int64)),
        ).logits.numpy()
    assert np.ptp(expected) > 0.1
    return found, batch, expected


@of_cases(DEFAULTS)
def test_scores_are_those_of_torch(case, tmp_path):
    found, batch, expected = classified(case, 1, tmp_path / "theirs")
    score = quick_jit(functools.partial(sequence_scores, score_apply(found.config)))
    scores = np.asarray(score(found.params, batch))
    np.testing.assert_allclose(scores, expected, atol=1e-4, rtol=0)


@of_cases(DEFAULTS)
def test_rewards_of_labels_are_those_of_torch(case, tmp_path):
    """Two labels for every other family, three for the rest."""
    count = 2 + DEFAULTS.index(case) % 2
    found, batch, logits = classified(case, count, tmp_path / "theirs")
    names = tuple(f"LABEL_{i}" for i in range(count))
    assert label_names(found.hf_config) == names
    score_fn = score_apply(found.config, num_outputs=count)

    @quick_jit
    def rewards(params, batch):
        reward = functools.partial(learned_reward, score_fn, params, batch)
        return [
            [reward(kind=kind, label=i) for i in range(count)]
            for kind in ("logit", "probability")
        ]

    expected = logits.T, torch.softmax(torch.tensor(logits), -1).numpy().T
    np.testing.assert_allclose(
        rewards(found.params, batch), expected, atol=1e-4, rtol=0
    )
