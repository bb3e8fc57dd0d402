"""Training a policy on completions that are good or bad: KTO, BCO, APO-zero."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from rlhf_jax.errors import UserError
from rlhf_jax.masking import masked_mean, masked_sum
from rlhf_jax.ops.reward_loss import pairwise_accuracy
from rlhf_jax.ops.unpaired_loss import UnpairedKind, unpaired_loss
from rlhf_jax.steps.forward import policy_forward
from rlhf_jax.steps.minibatches import gather
from rlhf_jax.steps.state import TrainState, apply_loss, cut
from rlhf_jax.types import ApplyFn, Array, Metrics, Params, TokenBatch, join_params

Labelled = tuple[TokenBatch, Array]  # [B, T] tokens; [B] int32: 1 good, 0 bad, −1 none


@dataclasses.dataclass(frozen=True)
class UnpairedConfig:
    """Preference optimisation of single completions (arXiv:2402.01306, 2404.04656).

    Raises:
      UserError: a value that no training can have; the message names the option.

    >>> UnpairedConfig(kind="bco").beta
    0.1
    """

    kind: UnpairedKind = "kto"
    """The loss of a completion, of `ops.unpaired_loss`."""
    beta: float = 0.1
    """How strongly the policy is held to the reference."""
    desirable_weight: float = 1.0
    """λ of the good: what makes up for fewer of them than of the bad."""
    undesirable_weight: float = 1.0
    """λ of the bad."""
    micro_batches: int = 1
    """Parts of an update's rows on a device, computed one after the other."""

    def __post_init__(self):
        if not self.beta > 0:
            raise UserError(f"beta = {self.beta}: expected more than 0")
        for name in ("desirable_weight", "undesirable_weight"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} = {getattr(self, name)}: expected 0 or more")
        if self.micro_batches < 1:
            raise UserError(f"micro_batches = {self.micro_batches}: expected 1 or more")


class UnpairedState(TrainState):
    """A TrainState with what BCO's δ is made of; the other kinds leave that alone."""

    reward_means: Array  # [2] float32, of βu over all bad, all good completions so far
    reward_counts: Array  # [2] float32, how many those were


def create_unpaired_state(
    apply_fn: ApplyFn, params: Params, tx: optax.GradientTransformation
) -> UnpairedState:
    """An UnpairedState that has seen nothing yet, its counter an array.

    No reference.
    """
    return UnpairedState.create(
        apply_fn=apply_fn,
        params=params,
        tx=tx,
        reward_means=jnp.zeros(2, jnp.float32),
        reward_counts=jnp.zeros(2, jnp.float32),
    ).replace(step=jnp.zeros((), jnp.int32))


def unpaired_step(
    state: UnpairedState,
    batch: Labelled,
    ref_params: Params,
    frozen: Params | None = None,
    *,
    ref_apply_fn: ApplyFn,
    config: UnpairedConfig,
    axis_name: str | None = None,
) -> tuple[UnpairedState, Metrics]:
    """One update of L = Σ λᵢ ℓᵢ / n over the n labelled rows of the global batch.

    ℓ is ``unpaired_loss``, where the papers are named. Its baseline is of the whole
    global batch, whatever devices and micro-batches:

    * kto: z = mean of log π(y′ | x)/π_ref(y′ | x), x a row's prompt and y′ the
      completion of the next labelled row (`mismatched`): one more forward pass of both
      networks, without a gradient;
    * bco: δ = half the sum of the mean βu of all good and of all bad completions that
      were seen before this update, which the state remembers.

    Args:
      state: policy with ``apply_fn`` an `ApplyFn`.
      batch: ([B, T] tokens, one completion a row, which the mask owns; [B] int32
        labels, 1 = good, 0 = bad, −1 = no label).
      ref_params: of the reference policy; no gradient goes there.
      frozen: parameters of the policy that are not trained; None where all are.
      ref_apply_fn: the reference policy.
      config: the loss.
      axis_name: the mapped axis over whose devices the batch is spread, or None.

    Returns:
      The new state and ``preference/*`` (docs/metrics), ``optim/grad_norm``. A row
      without a label has no part, a masked token neither; without any label the
      gradient is 0.
    """
    networks = (state.apply_fn, frozen, ref_apply_fn, ref_params)
    batch, baseline = _only_labelled(*batch), None
    if config.kind == "kto":
        baseline = _kl_baseline(state.params, batch, networks, config, axis_name)
    elif config.kind == "bco":
        baseline = jnp.mean(state.reward_means)

    def loss_fn(params, part):
        tokens, labels = part
        logps, reference = _logps(params, tokens, networks)
        terms = unpaired_loss(
            logps,
            reference,
            labels == 1,
            kind=config.kind,
            beta=config.beta,
            baseline=baseline,
            desirable_weight=config.desirable_weight,
            undesirable_weight=config.undesirable_weight,
        )
        metrics = _metrics(terms, logps, reference, labels, baseline, config)
        return *masked_sum(terms, labels >= 0), metrics

    state, metrics = apply_loss(
        state,
        loss_fn,
        batch,
        micro_batches=config.micro_batches,
        axis_name=axis_name,
    )
    return _remember(state, metrics) if config.kind == "bco" else state, metrics


def _only_labelled(tokens: TokenBatch, labels: Array) -> Labelled:
    """The mask without the rows that have no label."""
    mask = tokens.mask & (labels >= 0)[:, None]
    return dataclasses.replace(tokens, mask=mask), labels


def mismatched(batch: TokenBatch, known: Array, axis_name: str | None) -> TokenBatch:
    """Each prompt with the completion of another row: (xᵢ, yⱼ), j the next known row.

    Ethayarajh et al. 2024, arXiv:2402.01306, section 4.1. After the last row comes the
    first one of the global batch, so that j does not depend on the devices. A row that
    is alone is its own other.

    Args:
      batch: [B, T] tokens, one completion a row, which the mask owns.
      known: [B] bool, rows whose completions may be taken; at least one somewhere.
      axis_name: the mapped axis over whose devices the batch is spread, or None.

    Returns:
      TokenBatch [B, T]; the mask owns the completion, cut where the row is full.

    >>> tokens = jnp.array([[1, 7, 8, 0], [2, 3, 9, 0]])
    >>> mask = jnp.array([[0, 1, 1, 0], [0, 0, 1, 0]]) > 0
    >>> real = jnp.array([[1, 1, 1, 0], [1, 1, 1, 0]])
    >>> rows = TokenBatch(tokens, real, jnp.cumsum(real, axis=1) - 1, mask)
    >>> found = mismatched(rows, jnp.array([True, True]), None)
    >>> (found.tokens * found.segment_ids).tolist(), found.mask.sum(axis=1).tolist()
    ([[1, 9, 0, 0], [2, 3, 7, 8]], [1, 2])
    """
    rows, columns = batch.tokens.shape
    whole, known = gather((batch, known), axis_name)
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * rows
    here = first + jnp.arange(rows)
    other = jax.tree.map(lambda x: x[_next(known)[here]], whole)
    start, begin = (_completion_start(x)[:, None] for x in (batch, other))
    column = jnp.arange(columns)[None]
    source = column + begin - start
    answer, there = column >= start, source < columns
    source = jnp.clip(source, 0, columns - 1)
    take = lambda x: jnp.take_along_axis(x, source, axis=1)
    real = jnp.where(answer, there & (take(other.segment_ids) > 0), batch.segment_ids)
    return TokenBatch(
        tokens=jnp.where(answer, take(other.tokens), batch.tokens),
        segment_ids=real.astype(jnp.int32),
        positions=jnp.maximum(jnp.cumsum(real, axis=1, dtype=jnp.int32) - 1, 0),
        mask=answer & there & take(other.mask),
    )


def _next(known: Array) -> Array:
    """[N] int32: the next known row after each, after the last one the first."""
    rows = known.shape[0]
    index = jnp.where(known, jnp.arange(rows), rows)
    from_here = jax.lax.cummin(index, reverse=True)
    later = jnp.append(from_here[1:], rows)
    return jnp.minimum(jnp.where(later < rows, later, from_here[0]), rows - 1)


def _completion_start(batch: TokenBatch) -> Array:
    """[B]: the first column of each completion; the row's end where there is none."""
    column = jnp.arange(batch.mask.shape[1])[None]
    end = jnp.max(jnp.where(batch.segment_ids > 0, column + 1, 0), axis=1)
    return jnp.where(jnp.any(batch.mask, axis=1), jnp.argmax(batch.mask, axis=1), end)


Networks = tuple[ApplyFn, Params | None, ApplyFn, Params]


def _logps(
    params: Params, batch: TokenBatch, networks: Networks
) -> tuple[Array, Array]:
    """Two [B] float32 nats: Σ log π and Σ log π_ref over the tokens of the mask."""
    apply_fn, frozen, ref_apply_fn, ref_params = networks

    def summed(apply_fn: ApplyFn, params: Params) -> Array:
        policy = policy_forward(apply_fn, params, batch, temperature=1.0)
        return jnp.sum(jnp.where(batch.mask, policy.logprobs, 0.0), axis=1)

    reference = jax.lax.stop_gradient(summed(ref_apply_fn, ref_params))
    return summed(apply_fn, join_params(frozen, params)), reference


def _kl_baseline(
    params: Params,
    batch: Labelled,
    networks: Networks,
    config: UnpairedConfig,
    axis_name: str | None,
) -> Array:
    """z of the global batch, nats."""
    tokens, labels = batch
    others = mismatched(tokens, labels >= 0, axis_name)

    def log_ratio(part):
        logps, reference = _logps(params, part, networks)
        return logps - reference

    # As many rows at a time as the update has.
    ratios = jax.lax.map(log_ratio, cut(others, config.micro_batches)).reshape(-1)
    return masked_mean(ratios, labels >= 0, axis_name=axis_name)


def _metrics(
    terms: Array,
    logps: Array,
    reference: Array,
    labels: Array,
    baseline: Array | None,
    config: UnpairedConfig,
) -> Metrics:
    known, good, bad = labels >= 0, labels == 1, labels == 0
    reward = config.beta * (logps - reference)
    found = jnp.zeros(()) if baseline is None else baseline
    border = config.beta * jnp.maximum(found, 0.0) if config.kind == "kto" else found
    border = jnp.broadcast_to(border, reward.shape)
    right = pairwise_accuracy(
        jnp.where(good, reward, border), jnp.where(good, border, reward)
    )
    means = {
        "preference/loss": masked_sum(terms, known),
        "preference/accuracy": masked_sum(right, known),
        "preference/good_reward": masked_sum(reward, good),
        "preference/bad_reward": masked_sum(reward, bad),
        "preference/good_logps": masked_sum(logps, good),
        "preference/bad_logps": masked_sum(logps, bad),
    }
    if baseline is not None:
        count = jnp.sum(known, dtype=jnp.float32)
        means["preference/baseline"] = (baseline * count, count)
    return Metrics.of(means)


def _remember(state: UnpairedState, metrics: Metrics) -> UnpairedState:
    """The running means of βu with those of a global batch, unless it was skipped."""
    names = ("preference/bad_reward", "preference/good_reward")
    sums = jnp.stack([metrics.sums[name] for name in names])
    new = jnp.stack([metrics.counts[name] for name in names])
    counts = state.reward_counts + new
    change = (sums - new * state.reward_means) / jnp.maximum(counts, 1.0)
    skipped = metrics.sums["optim/skipped"] > 0
    keep = lambda old, new: jnp.where(skipped, old, new)
    return state.replace(
        reward_means=keep(state.reward_means, state.reward_means + change),
        reward_counts=keep(state.reward_counts, counts),
    )
