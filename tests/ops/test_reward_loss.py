import collections
import itertools
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.ops import (
    binary_reward,
    binary_reward_loss,
    centering_loss,
    choice_reward_loss,
    label_reward,
    pairwise_accuracy,
    pairwise_reward_loss,
    ranking_reward_loss,
    regression_reward_loss,
)


def scores(*values):
    return jnp.array(values, jnp.float32)


# Pairs.


def test_pair_by_hand():
    # Odds of e^Δ: Δ = log 3 is won with probability 3/4.
    loss = pairwise_reward_loss(scores(np.log(3), 0, 5), scores(0, np.log(3), 5))
    np.testing.assert_allclose(loss, -np.log([3 / 4, 1 / 4, 1 / 2]), rtol=1e-6)


def test_margin_asks_for_a_lead():
    loss = pairwise_reward_loss(scores(3.0), scores(0.0), margin=scores(2.0))
    np.testing.assert_allclose(loss, np.log1p(np.exp(-1.0)), rtol=1e-6)


def test_pair_far_apart_is_stable():
    loss = lambda chosen: pairwise_reward_loss(chosen, scores(0, 0))
    chosen = scores(-1e4, 1e4)
    assert loss(chosen).tolist() == [1e4, 0.0]
    assert jax.grad(lambda c: loss(c).sum())(chosen).tolist() == [-1.0, 0.0]


def test_margin_of_another_shape_is_refused():
    with pytest.raises(AssertionError):
        pairwise_reward_loss(scores(1, 2), scores(1, 2), margin=jnp.zeros((2, 1)))


def test_accuracy_counts_a_tie_as_half_and_shows_nan():
    got = pairwise_accuracy(scores(2, 1, 0, np.nan), scores(1, 1, 1, 1))
    np.testing.assert_array_equal(got, [1.0, 0.5, 0.0, np.nan])


def test_centering_looks_at_the_sum_of_a_pair():
    # 0.5 · (1 + 2)², 0.5 · (-3 + 3)²: the lead does not matter.
    loss = lambda c: centering_loss(c, scores(2, 3), coef=0.5)
    assert loss(scores(1, -3)).tolist() == [4.5, 0.0]
    gradient = jax.grad(lambda c: loss(c).sum())(scores(1, -3))
    assert gradient.tolist() == [3.0, 0.0]


def test_pair_margin_and_centering_are_those_of_trl():
    torch = pytest.importorskip("torch", reason="the oracle of this test")
    trainers = pytest.importorskip("trl.trainer.reward_trainer", reason="an oracle")
    rng = np.random.default_rng(0)
    numbers, margin = rng.normal(size=(2, 5)), rng.uniform(size=5)

    logits = torch.tensor(numbers.reshape(-1, 1), requires_grad=True)
    metric = collections.defaultdict(list)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(center_rewards_coefficient=0.3),
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
        _total_train_tokens=0,
        _metrics={"eval": metric},
    )
    expected = trainers.RewardTrainer.compute_loss(
        trainer,
        lambda **inputs: SimpleNamespace(logits=logits),
        {"margin": torch.tensor(margin)},
    )
    expected.backward()

    def ours(chosen, rejected):
        pairwise = pairwise_reward_loss(chosen, rejected, margin=scores(*margin))
        return (pairwise + centering_loss(chosen, rejected, coef=0.3)).mean()

    loss, gradients = jax.value_and_grad(ours, argnums=(0, 1))(*map(jnp.array, numbers))
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(
        np.concatenate(gradients), logits.grad.numpy()[:, 0], rtol=1e-5, atol=1e-7
    )


# Numbers.


def test_regression_by_hand():
    loss = lambda s: regression_reward_loss(s, scores(0, 4))
    assert loss(scores(3, 3.5)).tolist() == [9.0, 0.25]
    assert jax.grad(lambda s: loss(s).sum())(scores(3, 3.5)).tolist() == [6.0, -1.0]


# Rankings.


def test_ranking_is_a_draw_without_replacement():
    # Weights 4, 2, 1, in this order: 4/7 · 2/3 · 1/1.
    s = jnp.log(jnp.array([[2.0, 4.0, 1.0]]))
    loss = ranking_reward_loss(s, jnp.array([[1, 0, 2]]))
    np.testing.assert_allclose(loss, [-np.log(4 / 7 * 2 / 3)], rtol=1e-6)


def test_ties_are_each_drawn_against_all_that_are_no_better():
    # Weights 4, 2, 1, the first two tied at the top: 4/7 · 2/7 · 1/1.
    s = jnp.log(jnp.array([[2.0, 4.0, 1.0]]))
    loss = ranking_reward_loss(s, jnp.array([[0, 0, 1]]))
    np.testing.assert_allclose(loss, [-np.log(4 / 7 * 2 / 7)], rtol=1e-6)


def test_tied_completions_are_pulled_together():
    gradient = jax.grad(lambda s: ranking_reward_loss(s, jnp.array([[3, 3]])).sum())
    assert gradient(scores(1, 0)[None])[0, 0] > 0
    np.testing.assert_allclose(gradient(scores(1, 1)[None]), [[0, 0]], atol=1e-7)


def test_ranking_of_two_is_the_pair():
    a, b = jax.random.normal(jax.random.key(0), (2, 6))
    ranking = ranking_reward_loss(jnp.stack([a, b], 1), jnp.array([[0, 1]] * 6))
    np.testing.assert_allclose(ranking, pairwise_reward_loss(a, b), rtol=1e-5)


def test_best_against_the_rest_is_the_choice():
    s = jax.random.normal(jax.random.key(0), (3, 4))
    ranks = jnp.array([[1, 0, 1, 1]] * 3)
    rest = jnp.array([[0, -1, 0, 0]] * 3)  # the tied rest on their own
    first_draw = ranking_reward_loss(s, ranks) - ranking_reward_loss(s, rest)
    choice = choice_reward_loss(s, jnp.array([1, 1, 1]))
    np.testing.assert_allclose(first_draw, choice, rtol=1e-5)


def test_the_probabilities_of_all_rankings_add_up_to_1():
    ranks = jnp.array(list(itertools.permutations(range(4))))
    s = jnp.tile(scores(0.3, -1.2, 0.8, 2.0)[None], (len(ranks), 1))
    total = jnp.exp(-ranking_reward_loss(s, ranks)).sum()
    np.testing.assert_allclose(total, 1.0, rtol=1e-6)


def test_absent_completions_gaps_and_positions_do_not_matter():
    s = scores(0.3, -1.2, 0.8, 2.0)
    dense = ranking_reward_loss(s[None, :3], jnp.array([[2, 0, 1]]))
    gaps = ranking_reward_loss(s[None], jnp.array([[9, 2, 5, -1]]))
    np.testing.assert_allclose(gaps, dense, rtol=1e-6)


def test_fewer_than_two_completions_say_nothing():
    s = scores(1.0, 2.0)[None]
    for ranks in ([[-1, -1]], [[3, -1]]):
        loss = lambda s: ranking_reward_loss(s, jnp.array(ranks)).sum()  # noqa: B023
        assert loss(s) == 0.0
        assert jax.grad(loss)(s).tolist() == [[0.0, 0.0]]


def test_ranks_are_integers():
    with pytest.raises(AssertionError):
        ranking_reward_loss(jnp.zeros((1, 2)), jnp.zeros((1, 2)))


# Choices and labels.


def test_choice_by_hand():
    s = jnp.log(jnp.array([[1.0, 2.0, 5.0], [1.0, 2.0, 5.0]]))
    loss = choice_reward_loss(s, jnp.array([2, 0]))
    np.testing.assert_allclose(loss, -np.log([5 / 8, 1 / 8]), rtol=1e-6)


def test_choices_that_do_not_exist_do_not_pass_for_a_loss():
    loss = choice_reward_loss(jnp.zeros((3, 2)), jnp.array([2, -1, 1]))
    np.testing.assert_allclose(loss, [np.nan, np.nan, np.log(2)], rtol=1e-6)


def test_binary_loss_and_reward_agree():
    logits = jnp.array([[0.0, np.log(3)], [np.log(3), 0.0]])
    loss = binary_reward_loss(logits, jnp.array([1, 1]))
    np.testing.assert_allclose(loss, -np.log([3 / 4, 1 / 4]), rtol=1e-6)
    probability = binary_reward(logits, kind="probability")
    np.testing.assert_allclose(jnp.exp(-loss), probability, rtol=1e-6)
    np.testing.assert_allclose(binary_reward(logits), [np.log(3), 0.0], rtol=1e-6)


def test_binary_logits_have_two_classes():
    with pytest.raises(AssertionError):
        binary_reward(jnp.zeros((3, 1)))
    with pytest.raises(AssertionError):
        binary_reward_loss(jnp.zeros((3, 3)), jnp.zeros(3, int))


def test_the_reward_of_a_label_by_hand():
    # Weights 1, 2, 5: 1/8, 2/8, 5/8.
    logits = jnp.log(jnp.array([[1.0, 2.0, 5.0]]))
    share = [label_reward(logits, label=i, kind="probability").item() for i in range(3)]
    np.testing.assert_allclose(share, [1 / 8, 2 / 8, 5 / 8], rtol=1e-6)
    np.testing.assert_allclose(label_reward(logits, label=2), np.log([5]), rtol=1e-6)


def test_probability_far_apart_is_stable():
    logits = jnp.array([[1e4, 0.0, -1e4]])
    rewards = [label_reward(logits, label=i, kind="probability") for i in range(3)]
    assert [r.item() for r in rewards] == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_that_do_not_exist(label):
    with pytest.raises(ValueError, match=f"label = {label}, expected 0 … 2"):
        label_reward(jnp.zeros((1, 3)), label=label)


def test_unknown_kind_of_reward():
    kind: Any = "odds"
    with pytest.raises(ValueError, match="'odds', expected logit or probability"):
        binary_reward(jnp.zeros((1, 2)), kind=kind)
