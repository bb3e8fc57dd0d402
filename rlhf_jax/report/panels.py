"""Which metrics are drawn, and which of them share a small plot."""

from typing import NamedTuple


class Panel(NamedTuple):
    """One small plot: its curves are metrics of one unit."""

    title: str
    ylabel: str
    metrics: dict[str, str]  # metric -> label in the legend
    xlabel: str = "policy update"


PANELS = (
    Panel(
        "Supervised fine-tuning: loss",
        "nats a token",
        {"sft/loss": "train", "sft/eval_loss": "held out"},
        "optimiser step",
    ),
    Panel(
        "Reward model: loss",
        "nats a comparison",
        {"reward/loss": "train", "reward/eval_loss": "held out"},
        "optimiser step",
    ),
    Panel(
        "Reward model: accuracy",
        "share of comparisons",
        {"reward/accuracy": "train", "reward/eval_accuracy": "held out"},
        "optimiser step",
    ),
    Panel(
        "Preferences: loss",
        "loss a pair",
        {"preference/loss": "train", "preference/eval_loss": "held out"},
    ),
    Panel(
        "Preferences: accuracy",
        "share of pairs",
        {"preference/accuracy": "train", "preference/eval_accuracy": "held out"},
    ),
    Panel(
        "Preferences: margin",
        "implied score",
        {"preference/margin": "train", "preference/eval_margin": "held out"},
    ),
    Panel("Distillation: loss", "nats a token", {"distillation/loss": "train"}),
    Panel("KL to the teacher", "nats a response", {"distillation/kl": "KL"}),
    Panel("Learned reward", "score a response", {"objective/score": "learned"}),
    Panel("Gold reward", "score a response", {"objective/gold": "gold"}),
    Panel("KL to the reference", "nats a response", {"objective/kl": "KL"}),
    Panel("Entropy", "nats a response", {"objective/entropy": "entropy"}),
    Panel("Response length", "tokens", {"rollout/response_length": "length"}),
    Panel("Responses that ended", "share of responses", {"rollout/ended": "ended"}),
    Panel("Clipped ratios", "share of tokens", {"policy/clip_fraction": "clipped"}),
    Panel("Policy loss", "advantage units", {"policy/loss": "policy"}),
    Panel("Value loss", "score²", {"value/loss": "value"}),
)
