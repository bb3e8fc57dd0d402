"""What scripts are expected to find on TinyReviews, and where that is from.

A bound is something known, such as how often the truth itself agrees with annotators,
or was asked for before the run, in a script or in its documentation.
"""

from typing import NamedTuple

Place = tuple[str | int, ...]  # keys and positions, from the outside in


class Number(NamedTuple):
    """A number that is measured, and what is expected of it."""

    name: str
    at: Place
    why: str  # where the bound is from, or what was found before
    least: float | None = None
    most: float | None = None


class Claim(NamedTuple):
    """What a script with a preset is expected to find."""

    numbers: tuple[Number, ...]
    papers: tuple[str, ...] = ()  # arXiv numbers
    file: str | None = "summary.json"  # where the numbers are; None: what it returned


TRUTH = "the truth agrees with 0.857 of the pairs"
# Nats a token of the 500 held-out reviews with SFT's own tokenizer, under the grammar
# that wrote them: tests/experiments/test_evidence.py computes it.
GRAMMAR_LOSS = 1.129
COMPARED = "a gain of 0.4 over −0.05; three seeds had {}, docs/algorithms/compare.md"
PPO_PAPERS = ("1909.08593", "2009.01325", "2203.02155")

FORM = "the paper's form explains the gold reward"
NEUTRAL = Number("gold before", ("before/gold",), "0 in the data", -0.1, 0.1)
LEASH = Number("KL (nats)", ("after/kl",), "the quickstart's bound", None, 15)
RIGHT = Number(
    "accuracy", ("reward/eval_accuracy",), f"{TRUTH}, and 0.03 less", 0.827, 0.857
)


def policy_claim(papers: tuple[str, ...], found: str, *more: Number) -> Claim:
    """Of a policy that learns from its own samples; LEASH where it has a reference."""
    gold = Number("gold after", ("after/gold",), COMPARED.format(found), 0.35)
    return Claim((NEUTRAL, gold, *more), papers)


def won(name: str, number: int) -> Number:
    """How often a policy wins over the first, by gold."""
    at: Place = ("comparisons", 1, "against_first", number, "win_rate", "low95")
    return Number(f"win rate of the {name} by gold, low end", at, "½ is a coin", 0.5)


CLAIMS: dict[tuple[str, str], Claim] = {
    ("quickstart", "default"): Claim(
        (
            RIGHT._replace(name="reward model's accuracy"),
            NEUTRAL,
            Number("gold after", ("after/gold",), "three seeds had 0.77 to 0.80", 0.6),
            LEASH,
            Number("distinct samples", ("after/distinct",), "a share of 256", 0.5),
        ),
        PPO_PAPERS,
    ),
    ("sft", "default"): Claim(
        (
            Number(
                "loss (nats a token)",
                ("sft/eval_loss",),
                f"{GRAMMAR_LOSS} is the grammar's own, and 5 % more",
                GRAMMAR_LOSS,
                round(1.05 * GRAMMAR_LOSS, 3),
            ),
        ),
        ("2203.02155",),
        None,
    ),
    ("reward_model", "default"): Claim((RIGHT,), ("2009.01325", "1909.08593")),
    # Of most of them the comparison had another learning rate: an option to give.
    ("policy", "ppo"): policy_claim(PPO_PAPERS, "0.77 ± 0.02", LEASH),
    ("policy", "remax"): policy_claim(
        ("2310.10505",), "0.70 ± 0.08 at rate 1e-3", LEASH
    ),
    ("policy", "rloo"): policy_claim(
        ("2402.14740",), "0.75 ± 0.07 at rate 1e-3", LEASH
    ),
    ("policy", "grpo"): policy_claim(
        ("2402.03300",), "0.59 ± 0.04 at rate 5e-4", LEASH
    ),
    ("policy", "dr_grpo"): policy_claim(("2503.20783",), "0.57 ± 0.02 at rate 5e-4"),
    ("policy", "dapo"): policy_claim(("2503.14476",), "0.56 ± 0.05 at rate 5e-4"),
    ("policy", "gspo"): policy_claim(("2507.18071",), "0.80 ± 0.03 at rate 5e-4"),
    ("policy", "cispo"): policy_claim(("2506.13585",), "0.77 ± 0.11 at rate 1e-3"),
    ("policy", "gpg"): policy_claim(("2504.02546",), "0.76 ± 0.03 at rate 1e-3"),
    ("preference", "default"): Claim(
        (
            Number(
                "accuracy",
                ("preference/eval_accuracy",),
                f"½ is a coin, and {TRUTH}",
                0.5,
                0.857,
            ),
        ),
        ("2305.18290",),
    ),
    ("online_preference", "online_dpo"): policy_claim(
        ("2402.04792",), "0.77 ± 0.04 at rate 1e-3", LEASH
    ),
    ("online_preference", "xpo"): policy_claim(
        ("2405.21046",), "0.65 ± 0.07 at rate 1e-3", LEASH
    ),
    ("online_preference", "nash_md"): policy_claim(
        ("2312.00886",), "0.50 ± 0.03 at rate 1e-3", LEASH
    ),
    ("best_of_n", "default"): Claim(
        (
            NEUTRAL._replace(name="gold of one", at=("gold/1",)),
            Number(
                "gold of the best of 16",
                ("gold/n",),
                "a gain of 0.3 over −0.05; three seeds had 0.66 ± 0.01, "
                "docs/algorithms/compare.md",
                0.25,
            ),
        ),
        ("2112.09332", "2210.10760"),
        None,
    ),
    ("expected_reward", "default"): Claim(
        (
            Number(
                "gold",
                ("gold", "value"),
                "the quickstart's bound; docs/evaluation.md has 0.781 of its PPO",
                0.6,
            ),
        ),
    ),
    ("win_rate", "default"): Claim((won("second", 0), won("last", -1))),
    ("reward_quality", "default"): Claim(
        (
            Number("accuracy", ("accuracy",), f"{TRUTH}, and 0.03 less", 0.827, 0.857),
            Number("calibration error", ("ece",), "docs/evaluation.md has 0.059"),
            Number(
                "fresh pairs in gold's order, low end",
                ("fresh", "pairwise", "low95"),
                "½ is a coin; docs/evaluation.md has 0.771",
                0.5,
            ),
        ),
        file="quality.json",
    ),
    ("coverage", "default"): Claim(
        (
            Number("least of 33", ("least",), "shares of 95 % intervals", 0.93, 0.97),
            Number(
                "greatest of 33",
                ("most",),
                "the same; docs/evaluation.md says which three are known not to",
                0.93,
                0.97,
            ),
        ),
    ),
    ("planted_hack", "default"): Claim(
        (
            Number(
                "hacked runs of 5 with an alarm before gold was 10 % below its peak",
                ("planted_in_time",),
                "all of them",
                5,
                5,
            ),
            Number("alarms in 5 clean runs", ("clean_alarms",), "none", 0, 0),
        ),
        ("2210.10760",),
    ),
    ("overoptimization", "default"): Claim(
        tuple(
            Number(
                f"R² of {title}, {n} preferences",
                (f"{method}/{n}", "r_squared"),
                FORM,
                0.9,
            )
            for method, title in (("rl", "PPO"), ("best_of_n", "best of n"))
            for n in (100, 300, 1000, 3000)
        ),
        ("2210.10760",),
    ),
    ("addition", "default"): Claim(
        (
            Number(
                "sums right before GRPO",
                ("accuracy after SFT",),
                "docs/interaction.md has 0.39 to 0.53",
            ),
            Number("after", ("accuracy after GRPO",), "0.91 to 0.96 there", 0.9),
        ),
        ("2402.03300",),
    ),
    ("calculator", "default"): Claim(
        (
            Number(
                "products right before GRPO",
                ("accuracy after SFT",),
                "docs/interaction.md has 0.43 to 0.49",
            ),
            Number("after", ("accuracy after GRPO",), "0.93 to 0.95 there", 0.9),
        ),
        ("2402.03300", "2210.03629"),
    ),
}
