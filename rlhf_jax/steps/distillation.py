"""Training a student on a teacher's distributions, of tokens that it drew itself."""

import dataclasses

import jax
import jax.numpy as jnp

from rlhf_jax.errors import UserError
from rlhf_jax.masking import masked_sum
from rlhf_jax.ops.distillation_loss import distillation_loss
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.steps.state import TrainState, apply_loss
from rlhf_jax.types import ApplyFn, Array, Metrics, Params, TokenBatch, join_params


@dataclasses.dataclass(frozen=True)
class DistillationConfig:
    """On-policy distillation (GKD, arXiv:2306.13649; MiniLLM, arXiv:2306.08543).

    Raises:
      UserError: a value that no training can have; the message names the option.

    >>> DistillationConfig(SamplingConfig(max_new_tokens=24), beta=0.0).on_policy
    1.0
    """

    sampling: SamplingConfig = dataclasses.field(
        default_factory=lambda: SamplingConfig(max_new_tokens=48)
    )
    """How the student draws responses."""
    beta: float = 1.0
    """β of the generalised Jensen–Shannon divergence: 0 is KL(teacher ‖ student), 1 is
    KL(student ‖ teacher)."""
    temperature: float = 1.0
    """Divides both logits in the loss; that of the draws is sampling.temperature."""
    on_policy: float = 1.0
    """λ, the share of batches whose responses the student draws; the others are the
    data's."""
    micro_batches: int = 1
    """Parts of an update's rows on a device, computed one after the other."""

    def __post_init__(self):
        for name in ("beta", "on_policy"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} = {getattr(self, name)}: expected 0 to 1")
        if not self.temperature > 0:
            raise UserError(f"temperature = {self.temperature}: expected more than 0")
        if self.micro_batches < 1:
            raise UserError(f"micro_batches = {self.micro_batches}: expected 1 or more")


def distillation_step(
    state: TrainState,
    batch: TokenBatch,
    teacher_params: Params,
    frozen: Params | None = None,
    *,
    teacher_apply_fn: ApplyFn,
    config: DistillationConfig,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """One update of L = Σ mₜ D(π_T(· | sₜ), π(· | sₜ)) / Σ mₜ over the global batch.

    D is ``distillation_loss``. Agarwal et al. 2023 (GKD), arXiv:2306.13649, algorithm
    1; with β = 1 on the student's own tokens it is the reverse KL of Gu et al. 2023
    (MiniLLM), arXiv:2306.08543, of each token alone: no token answers for what it does
    to those after it.

    Args:
      state: the student, ``apply_fn`` an `ApplyFn`.
      batch: [B, T] tokens, of a rollout (`Rollout.batch`) or of the data; the mask says
        which are learned. Which of the two it is, the caller draws: λ is ``on_policy``.
      teacher_params: no gradient goes there.
      frozen: parameters of the student that are not trained; None where all are.
      teacher_apply_fn: the teacher. Where its logits and the student's are not of the
        same width, the ids beyond the smaller one are padding, and left out.
      config: the divergence.
      axis_name: the mapped axis over whose devices the batch is spread, or None.

    Returns:
      The new state and ``distillation/*`` (docs/metrics), ``optim/grad_norm``. A masked
      token has no part; without any the gradient is 0.
    """

    def loss_fn(params, part):
        whole = join_params(frozen, params)
        student = state.apply_fn(whole, part).logits
        teacher = teacher_apply_fn(teacher_params, part).logits
        return _terms(student, jax.lax.stop_gradient(teacher), part.mask, config)

    return apply_loss(
        state,
        loss_fn,
        batch,
        micro_batches=config.micro_batches,
        axis_name=axis_name,
    )


def distillation_eval(
    params: Params,
    batch: TokenBatch,
    teacher_params: Params,
    frozen: Params | None = None,
    *,
    apply_fn: ApplyFn,
    teacher_apply_fn: ApplyFn,
    config: DistillationConfig,
    axis_name: str | None = None,
) -> Metrics:
    """``distillation/*`` of the global batch, without an update. No reference."""
    student = apply_fn(join_params(frozen, params), batch).logits
    teacher = teacher_apply_fn(teacher_params, batch).logits
    _, _, metrics = _terms(student, teacher, batch.mask, config)
    return metrics.reduce(axis_name)


def _terms(
    student: Array, teacher: Array, mask: Array, config: DistillationConfig
) -> tuple[Array, Array, Metrics]:
    """(Σ mₜ Dₜ, Σ mₜ, metrics); the KL is at temperature 1 whatever the loss's."""
    width = min(student.shape[-1], teacher.shape[-1])
    student, teacher = student[..., :width], teacher[..., :width]
    terms = distillation_loss(
        student, teacher, mask, beta=config.beta, temperature=config.temperature
    )
    total, count = masked_sum(terms, mask)
    own = jax.lax.stop_gradient(student)
    kl, _ = masked_sum(distillation_loss(own, teacher, mask, beta=1.0), mask)
    rows = jnp.sum(jnp.any(mask, axis=1), dtype=jnp.float32)
    metrics = {"distillation/loss": (total, count), "distillation/kl": (kl, rows)}
    return total, count, Metrics.of(metrics)
