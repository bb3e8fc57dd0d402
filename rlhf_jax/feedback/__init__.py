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
    vote_weights,
)
from rlhf_jax.feedback.assistant import (
    answer_logprobs,
    make_ask,
    sample_completions,
)
from rlhf_jax.feedback.checks import gold_accuracy, self_agreement
from rlhf_jax.feedback.choice import choose_pairs
from rlhf_jax.feedback.consensus import consensus_pairs, consensus_preferences
from rlhf_jax.feedback.constitution import (
    Constitution,
    Principle,
    Templates,
    read_constitution,
)
from rlhf_jax.feedback.judge import (
    first_bias,
    model_verdicts,
    preferred,
    reward_verdicts,
    swap_consistency,
    verdict_preferences,
    verdict_ranking,
)
from rlhf_jax.feedback.rankings import ranking_labels, ranking_pairs
from rlhf_jax.feedback.revision import Revision, critique_and_revise
from rlhf_jax.feedback.rubric import (
    Criterion,
    Rubric,
    Scale,
    read_rubric,
    rubric_reward,
)
from rlhf_jax.feedback.votes import (
    Judged,
    Votes,
    ranking_votes,
    rating_votes,
    table_votes,
)

__all__ = [
    "Agreement",
    "Constitution",
    "Criterion",
    "DawidSkene",
    "Interval",
    "Judged",
    "Principle",
    "Reliability",
    "Revision",
    "Rubric",
    "Scale",
    "Templates",
    "Votes",
    "annotator_abilities",
    "answer_logprobs",
    "choose_pairs",
    "consensus_pairs",
    "consensus_preferences",
    "critique_and_revise",
    "dawid_skene",
    "first_bias",
    "gold_accuracy",
    "krippendorff_alpha",
    "make_ask",
    "measure_agreement",
    "model_verdicts",
    "preferred",
    "ranking_labels",
    "ranking_pairs",
    "ranking_votes",
    "rating_votes",
    "read_constitution",
    "read_rubric",
    "reward_verdicts",
    "rubric_reward",
    "sample_completions",
    "self_agreement",
    "swap_consistency",
    "table_votes",
    "verdict_preferences",
    "verdict_ranking",
    "vote_weights",
    "wilson_interval",
]
