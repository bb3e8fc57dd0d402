"""What people, or principles, say about completions, made ready for training."""

from rlhf_jax.feedback.agreement import (
    Agreement,
    Interval,
    krippendorff_alpha,
    measure_agreement,
    wilson_interval,
)
from rlhf_jax.feedback.annotators import (
    DawidSkene,
    Reliability,
    annotator_abilities,
    dawid_skene,
)
from rlhf_jax.feedback.checks import gold_accuracy, self_agreement
from rlhf_jax.feedback.choice import choose_pairs
from rlhf_jax.feedback.consensus import consensus_pairs, consensus_preferences
from rlhf_jax.feedback.rankings import ranking_labels, ranking_pairs
from rlhf_jax.feedback.votes import (
    Judged,
    Votes,
    ranking_votes,
    rating_votes,
    table_votes,
)

__all__ = [
    "Agreement",
    "DawidSkene",
    "Interval",
    "Judged",
    "Reliability",
    "Votes",
    "annotator_abilities",
    "choose_pairs",
    "consensus_pairs",
    "consensus_preferences",
    "dawid_skene",
    "gold_accuracy",
    "krippendorff_alpha",
    "measure_agreement",
    "ranking_labels",
    "ranking_pairs",
    "ranking_votes",
    "rating_votes",
    "self_agreement",
    "table_votes",
    "wilson_interval",
]
