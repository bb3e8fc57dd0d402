"""What people, or principles, say about completions, made ready for training."""

from rlhf_jax.feedback.rankings import ranking_labels, ranking_pairs

__all__ = ["ranking_labels", "ranking_pairs"]
