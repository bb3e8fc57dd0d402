"""From prompts to responses."""

from collections.abc import Callable

from rlhf_jax.sampling import SamplingConfig, generate
from rlhf_jax.types import ApplyFn, Array, Params, Rollout, TokenBatch, join_params


def sample_step(
    params: Params,
    prompts: TokenBatch,
    row: Array,
    frozen: Params | None = None,
    *,
    key: Array,
    apply_fn: ApplyFn,
    config: SamplingConfig,
    layout: Callable[[Params], Params] = lambda params: params,
    report: Callable[..., None] | None = None,
    axis_name: str | None = None,
) -> Rollout:
    """Samples responses to prompts: `generate` as a step. No reference.

    Args:
      params: of the policy.
      prompts: [B, P] tokens, left-padded.
      row: [B] int32 global rows; with ``key`` they decide what is sampled.
      frozen: parameters of the policy that are not trained; None where all are.
      key: PRNG key, the same on every device.
      apply_fn: the policy.
      config: sampling settings.
      layout: what is done to the parameters once, before the decode loop; see
        `models.decode_layout`.
      report: called on the host while it runs, as ``generate`` says.
      axis_name: unused; rows are independent.

    Returns:
      Rollout of [B · completions, P + R].
    """
    del axis_name
    whole = layout(join_params(frozen, params))
    return generate(
        apply_fn, whole, prompts, key=key, config=config, rows=row, report=report
    )
