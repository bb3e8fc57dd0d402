"""All responses that a policy gives with some probability, and how probable each is."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.data import Prompt, batches, collate_prompts
from rlhf_jax.data.records import TokenIds
from rlhf_jax.errors import UserError
from rlhf_jax.ops import scale_by_temperature
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.types import ApplyFn, Array, Params, TokenBatch


class Response(NamedTuple):
    """One that a policy can give."""

    ids: TokenIds  # its stop token among them
    logprob: float  # nats, log π(y|x)


def enumerate_responses(
    apply_fn: ApplyFn,
    params: Params,
    prompts: Sequence[TokenIds],
    *,
    config: SamplingConfig,
    least: float,
    batch_size: int = 64,
) -> list[list[Response]]:
    """Every response with π(y|x) ≥ p: the tree of tokens, cut where a branch has less.

    No reference. A prefix is at least as probable as all that begins with it, and at
    most 1/p of one length have p or more: no branch is lost, and the work is bounded
    whatever the vocabulary. For `exact_expected_reward`.

    Args:
      apply_fn: the policy.
      params: its parameters.
      prompts: token ids of N prompts.
      config: temperature, ``stop_ids`` and ``max_new_tokens`` of the responses.
      least: p, in (0, 1].
      batch_size: prefixes at a time.

    Returns:
      The responses to each prompt, each once, the most probable first.

    Raises:
      UserError: p outside (0, 1], or a config that truncates or has a ``stop_after``:
        its responses have other probabilities.

    >>> from rlhf_jax.types import ModelOutput
    >>> policy = lambda params, batch: ModelOutput(params[batch.tokens])
    >>> logits = jnp.log(jnp.array([[0.5, 0.5], [0.25, 0.75]]))  # token 0 ends it
    >>> config = SamplingConfig(max_new_tokens=2, stop_ids=(0,))
    >>> [found] = enumerate_responses(policy, logits, [(1,)], config=config, least=0.2)
    >>> [(x.ids, round(math.exp(x.logprob), 2)) for x in found]
    [((1, 1), 0.56), ((0,), 0.25)]
    """
    if not 0 < least <= 1:
        raise UserError(f"least probability = {least}: expected more than 0, at most 1")
    if config.truncates or config.stop_after:
        raise UserError(
            "responses are enumerated without top_k, top_p, min_p and stop_after: "
            "expected none of them"
        )
    next_logprobs = jax.jit(functools.partial(_next_logprobs, apply_fn))
    width = max(map(len, prompts), default=0) + config.max_new_tokens - 1
    collate = functools.partial(collate_prompts, length=width, pad_id=config.pad_id)
    found: list[list[Response]] = [[] for _ in prompts]
    growing = [(row, Response((), 0.0)) for row in range(len(prompts))]
    for left in reversed(range(config.max_new_tokens)):
        asked = [Prompt(prompts[row] + prefix.ids) for row, prefix in growing]
        logprobs = [
            np.asarray(next_logprobs(params, batch, config.temperature))[real]
            for batch, real in batches(asked, batch_size, collate)
        ]
        grown, growing = _extend(growing, logprobs, math.log(least)), []
        for row, prefix in grown:
            ended = not left or prefix.ids[-1] in config.stop_ids
            (found[row].append(prefix) if ended else growing.append((row, prefix)))
        if not growing:
            break
    return [sorted(own, key=lambda x: -x.logprob) for own in found]


def _next_logprobs(
    apply_fn: ApplyFn, params: Params, batch: TokenBatch, temperature: float
) -> Array:
    """[B, V] float32 nats of the token after the last column."""
    logits = apply_fn(params, batch).logits[:, -1].astype(jnp.float32)
    return jax.nn.log_softmax(scale_by_temperature(logits, temperature))


def _extend(
    growing: list[tuple[int, Response]], logprobs: list[np.ndarray], least: float
) -> list[tuple[int, Response]]:
    """Every prefix with every token that leaves it probable enough."""
    grown = []
    after = (row for batch in logprobs for row in batch)
    for (row, prefix), tokens in zip(growing, after, strict=True):
        total = prefix.logprob + tokens.astype(np.float64)
        for token in np.flatnonzero(total >= least).tolist():
            longer = Response((*prefix.ids, token), float(total[token]))
            grown.append((row, longer))
    return grown
