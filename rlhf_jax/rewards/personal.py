"""Rewards of single users: what their weights are likely to be, and a new one's."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlhf_jax.ops.reward_loss import pairwise_reward_loss
from rlhf_jax.types import Array, Params

_STEPS = 100  # of L-BFGS, at most
_GRADIENT = 1e-4  # nats, of the whitened weights: it has converged


class UserPrior(NamedTuple):
    """What is known of a user's weights before any label: N(mean, covariance)."""

    mean: Array  # [R] float32
    covariance: Array  # [R, R] float32


def user_prior(users: Array, *, ridge: float = 0.01) -> UserPrior:
    """The Gaussian of users who are known: N(w̄, Σ + ε·tr(Σ)/R·I), Σ their covariance.

    Empirical Bayes; no reference. Where users differ in a few directions alone, a new
    one is looked for in those: labels need not say that the others do not matter.

    Args:
      users: [U, R] float, weights of U ≥ 2 users.
      ridge: ε, so that no direction is ruled out.

    Raises:
      ValueError: fewer than two users.

    >>> prior = user_prior(jnp.array([[1.0], [-1.0]]), ridge=0.5)
    >>> prior.mean.tolist(), prior.covariance.tolist()
    ([0.0], [[3.0]])
    """
    count, rank = users.shape
    if count < 2:
        raise ValueError(f"{count} users: expected at least 2, to see how they differ")
    covariance = jnp.cov(users.astype(jnp.float32), rowvar=False).reshape(rank, rank)
    spread = ridge * jnp.trace(covariance) / rank
    return UserPrior(jnp.mean(users, axis=0), covariance + spread * jnp.eye(rank))


def fit_user(
    leads: Array, differences: Array, weight: Array, prior: UserPrior
) -> Array:
    """A user's weights from few labels, the rest of the reward model frozen.

    w = argmin Σₙ cₙ·(−log σ(lₙ + w·dₙ)) + ½ (w − μ)ᵀ Σ⁻¹ (w − μ): logistic regression
    with a Gaussian prior, so that without a label w = μ. That a new user is a convex
    fit of few numbers: Shenfeld et al. 2025 (PReF), arXiv:2503.06358; Bose et al. 2025
    (LoRe), arXiv:2504.14439. Found with L-BFGS.

    Args:
      leads: [N] float, l, pooled score of the chosen less that of the rejected.
      differences: [N, R] float, d, features of the chosen less those of the rejected.
      weight: [N] float, c; a pair of weight 0 is masked, and may be anything.
      prior: μ and Σ, of `user_prior`.

    Returns:
      [R] float32.

    >>> prior = UserPrior(jnp.zeros(1), jnp.eye(1))
    >>> fit = fit_user(jnp.zeros(1), jnp.ones((1, 1)), jnp.ones(1), prior)
    >>> [round(w, 3) for w in fit.tolist()]  # w = 1 − σ(w)
    [0.401]
    """
    counts = weight > 0
    leads = jnp.where(counts, leads, 0.0).astype(jnp.float32)
    differences = jnp.where(counts[:, None], differences, 0.0).astype(jnp.float32)
    factor = jnp.linalg.cholesky(prior.covariance)  # w = μ + factor·z, z ~ N(0, I)
    weights = lambda z: prior.mean + factor @ z

    def objective(z: Array) -> Array:
        chosen = leads + differences @ weights(z)
        terms = pairwise_reward_loss(chosen, jnp.zeros_like(chosen))
        return jnp.sum(jnp.where(counts, weight * terms, 0.0)) + 0.5 * jnp.sum(z**2)

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(objective)

    def update(carry):
        z, state = carry
        value, grad = value_and_grad(z, state=state)
        step, state = solver.update(
            grad, state, z, value=value, grad=grad, value_fn=objective
        )
        return optax.apply_updates(z, step), state

    def going_on(carry):
        _, state = carry
        done = optax.tree.get(state, "count")
        grad = optax.tree.get(state, "grad")
        return (done == 0) | ((done < _STEPS) & (jnp.max(jnp.abs(grad)) > _GRADIENT))

    start = jnp.zeros_like(prior.mean)
    found, _ = jax.lax.while_loop(going_on, update, (start, solver.init(start)))
    return weights(found)


def user_reward_params(params: Params, weights: Array) -> Params:
    """One user's reward model: a head with one output in place of 1 + R.

    The score is linear in the head, s_u = h·(K[1; w]) + b·[1; w]: what reads a scalar
    reward model reads this one, and it costs as much. No reference.

    Args:
      params: of a ``ScoreModel`` with 1 + R outputs, s̄ and φ; "users" is left out.
      weights: [R] float, w; zeros are everybody's, `fit_user`'s a new user's.

    Returns:
      Parameters of a ``ScoreModel`` with one output; the trunk is not copied.

    Raises:
      ValueError: the head has not 1 + R outputs.

    >>> head = {"kernel": jnp.eye(2), "bias": jnp.zeros(2), "gain": 1.0, "offset": 0.5}
    >>> ours = user_reward_params({"score_head": head}, jnp.array([3.0]))
    >>> ours["score_head"]["kernel"].tolist(), float(ours["score_head"]["offset"])
    ([[1.0], [3.0]], 2.0)
    """
    head = params["score_head"]
    outputs = head["kernel"].shape[1]
    if outputs != 1 + weights.size:
        raise ValueError(
            f"the head has {outputs} outputs, expected 1 + {weights.size}, the pooled "
            "score and a feature for each of the user's weights"
        )
    mix = jnp.concatenate([jnp.ones(1), weights.astype(jnp.float32)])
    head = head | {
        "kernel": (head["kernel"] @ mix)[:, None],
        "bias": (head["bias"] @ mix)[None],
        "offset": head["offset"] * jnp.sum(mix),
    }
    rest = {name: tree for name, tree in params.items() if name != "users"}
    return rest | {"score_head": head}
