"""The loss of a student that learns a teacher's distributions."""

import chex
import jax
import jax.numpy as jnp

from rlhf_jax.ops.logits import scale_by_temperature
from rlhf_jax.ops.logprobs import align_to_tokens
from rlhf_jax.types import Array


def distillation_loss(
    student_logits: Array,
    teacher_logits: Array,
    mask: Array,
    *,
    beta: float = 0.5,
    temperature: float | Array = 1.0,
) -> Array:
    """Generalised Jensen–Shannon divergence: β·KL(P ‖ M) + (1−β)·KL(Q ‖ M).

    P is the teacher's distribution of a token, Q the student's, M = βP + (1−β)Q.
    ``beta`` = 0 is KL(P ‖ Q), the forward KL of supervised distillation; 1 is
    KL(Q ‖ P), the reverse one. They are the limits of the divergence *over* β and over
    1−β; the divergence itself goes to 0 there, so that a small β needs a larger
    learning rate than β = 0.

    Agarwal et al. 2023 (GKD), arXiv:2306.13649, eq. 1. On tokens that the student has
    drawn it is on-policy distillation; the gradient does not see the drawing.

    Args:
      student_logits: [B, T, V] finite float, index t is for the token after t.
      teacher_logits: [B, T, V] finite float, of the same vocabulary; its gradient is
        not stopped.
      mask: [B, T] bool, the tokens to learn.
      beta: β, 0 to 1.
      temperature: τ > 0, divides both logits; the loss is not multiplied by τ².

    Returns:
      [B, T] float32 nats, index t is about token t; column 0 is 0, and so is what is
      masked.

    Raises:
      ValueError: if beta is outside 0 … 1, or a temperature given as a number is not
        positive.

    >>> student, teacher = jnp.zeros((1, 2, 2)), jnp.log(jnp.array([[[1.0, 3.0]] * 2]))
    >>> mask = jnp.array([[True, True]])
    >>> reverse = distillation_loss(student, teacher, mask, beta=1.0)
    >>> [round(x, 3) for x in reverse[0].tolist()]  # ½ log (½ / ¼) + ½ log (½ / ¾)
    [0.0, 0.144]
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"distillation_loss: beta = {beta}, expected 0 to 1")
    chex.assert_rank([student_logits, teacher_logits, mask], [3, 3, 2])
    chex.assert_equal_shape([student_logits, teacher_logits])
    chex.assert_equal_shape_prefix([student_logits, mask], 2)
    chex.assert_type(mask, bool)

    def log_probs(logits: Array) -> Array:
        # Moved to their tokens first, so that the mask hides what it should.
        logits = jnp.where(mask[..., None], align_to_tokens(logits), 0)
        return jax.nn.log_softmax(scale_by_temperature(logits, temperature), axis=-1)

    student, teacher = log_probs(student_logits), log_probs(teacher_logits)
    if beta == 0:
        return _kl(teacher, student)
    if beta == 1:
        return _kl(student, teacher)
    mixture = jnp.logaddexp(teacher + jnp.log(beta), student + jnp.log1p(-beta))
    return beta * _kl(teacher, mixture) + (1.0 - beta) * _kl(student, mixture)


def _kl(p: Array, q: Array) -> Array:
    """[...] KL divergence of log-probs [..., V]."""
    return jnp.sum(jnp.exp(p) * (p - q), axis=-1)
