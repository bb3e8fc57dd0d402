"""Which of several policies is better: win rates and ratings on the same prompts.

  python -m experiments.win_rate --policies runs/sft runs/ppo --reward runs/reward
  python -m experiments.win_rate --policies runs/sft runs/ppo --judge runs/judge

Every policy answers the same prompts, with randomness of its own. The answers are
compared by a reward model, by a reward function (module:function), or by a judge, a
model that is asked which of two is better, in both orders; and once more by --gold. The
first policy is the one that the others are compared with: how often they win, a tie
being half a win, the same at equal length, and by how much their reward is higher. All
of them are rated by Bradley–Terry on Elo's scale. Every interval is over prompts.
Written are answers.jsonl, summary.json and a picture: docs/evaluation.md.
"""

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import cli
from experiments.asking import AskConfig, Asked, ask, read_asked
from experiments.inputs import DataConfig
from experiments.networks import fit_to_policy, load_reward
from experiments.win_report import compare, draw, rate, show
from rlhf_jax.data import write_rows
from rlhf_jax.errors import UserError
from rlhf_jax.evaluation import reward_outcomes
from rlhf_jax.feedback import (
    Constitution,
    Principle,
    first_bias,
    make_ask,
    preferred,
    read_constitution,
    swap_consistency,
)
from rlhf_jax.feedback.judging import principle_verdicts
from rlhf_jax.rewards import load_reward_function
from rlhf_jax.rundir import create_run_dir, save_json
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.stages import load_policy


@dataclasses.dataclass(frozen=True)
class Config(AskConfig):
    """A comparison of policies."""

    run_dir: Path = Path("runs/win_rate")
    """Where the answers, the numbers and the picture go."""
    policies: tuple[Path, ...] = (Path("runs/sft"), Path("runs/policy"))
    """Two or more: run directories, checkpoints of transformers or hub ids; the others
    are compared with the first."""
    judge: Path | None = None
    """Asks this model instead of the reward: run directory, checkpoint or hub id."""
    question: str = "Which is better?"
    """What the judge is asked."""
    constitution: Path | None = None
    """Principles (.toml), one of which is drawn for each comparison, instead of the
    question; and how the judge is asked."""
    data: DataConfig = DataConfig("tfds:tiny_reviews/prompts:test")
    """Prompts, all of which are asked."""
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=24, completions=4)
    """How responses are drawn; K of them, all pairs of which a reward compares, and a
    judge the first with the first and so on."""

    def __post_init__(self):
        if len({*self.policies}) < max(2, len(self.policies)):
            named = ", ".join(map(str, self.policies))
            raise UserError(f"policies = {named}: expected two or more, each once")


Outcomes = dict[tuple[int, int], np.ndarray]  # of each pair of policies, [N, M]


def main(config: Config) -> dict[str, Any]:
    """Asks all policies, compares, and returns the summary."""
    run_dir = create_run_dir(config.run_dir, config, resume=False)
    names = short_names(config.policies)
    answers = [answer(config, i, run_dir) for i in range(len(names))]
    for name, other in zip(names, answers, strict=True):
        if other.prompts != answers[0].prompts:
            raise UserError(
                f"{name}: its tokenizer spells the prompts otherwise than that of "
                f"{names[0]}; expected the same texts, so that answers can be compared"
            )
    k = config.sampling.completions
    lengths = [np.reshape([len(t) for t in x.completions], (-1, k)) for x in answers]
    rng = np.random.default_rng(config.seed)
    comparisons = [
        {"judged_by": by}
        | {"against_first": compare(names, outcomes, lengths, rewards, rng)}
        | {"ratings": rate(names, outcomes)}
        | more
        for by, outcomes, rewards, more in judgements(config, answers)
    ]
    summary = {"policies": names, "comparisons": comparisons}
    save_json(run_dir / "summary.json", summary)
    write_rows(answer_rows(names, answers, k), run_dir / "answers.jsonl")
    show(summary)
    draw(summary, run_dir / "win_rate.png")
    return summary


def judgements(
    config: Config, answers: list[Asked]
) -> Iterator[tuple[str, Outcomes, list[np.ndarray] | None, dict[str, float]]]:
    """(who judges, outcomes, rewards where there are some, what else is known)."""
    k, policies = config.sampling.completions, range(len(answers))
    pairs = [(a, b) for b in policies for a in policies if a != b]
    if config.judge is not None:
        outcomes, positions = judge_outcomes(config, answers, pairs)
        yield str(config.judge), outcomes, None, positions
    scored = {} if config.judge is not None else {"score": config.reward}
    for name, by in (scored | ({"gold": config.gold} if config.gold else {})).items():
        rewards = [x.by_prompt(name, k) for x in answers]
        of = {(a, b): reward_outcomes(rewards[a], rewards[b]) for a, b in pairs}
        yield by, of, rewards, {}


def short_names(paths: tuple[Path, ...]) -> list[str]:
    """The folders' own names, or the paths where two have the same."""
    names = [path.name for path in paths]
    return names if len({*names}) == len(names) else [str(path) for path in paths]


def answer(config: Config, number: int, run_dir: Path) -> Asked:
    """What one of the policies answers; each has randomness of its own."""
    policy = load_policy(config.policies[number], config.pretrained)
    judged_by = config.reward, config.reward_kind, policy, config.pretrained
    scored = config.judge is None
    reward = load_reward(*judged_by, config.reward_label) if scored else no_reward
    gold = None if config.gold is None else load_reward_function(config.gold)
    config = fit_to_policy(config, policy, config.prompt_length, config.stop_text)
    asked = read_asked(config, policy.tokenizer, run_dir, held_out=True)
    prompts = [prompt for _, prompt in asked]
    key = jax.random.fold_in(jax.random.key(config.seed), number)
    title = f"{config.policies[number].name} answers"
    return ask(config, prompts, policy, reward, gold, key=key, title=title)


def no_reward(*, completions: list[str]) -> list[float]:
    """Where a judge compares, nothing is scored."""
    return [0.0] * len(completions)


def judge_outcomes(
    config: Config, answers: list[Asked], pairs: list[tuple[int, int]]
) -> tuple[Outcomes, dict[str, float]]:
    """A judge's probabilities, both orders averaged, and how far positions mattered."""
    assert config.judge is not None
    k, count = config.sampling.completions, len(answers[0].completions)
    if config.constitution is not None:
        constitution = read_constitution(config.constitution)
    else:
        constitution = Constitution((Principle("question", "", "", config.question),))
    rng = random.Random(config.seed)
    verdicts = principle_verdicts(
        make_ask(load_policy(config.judge, config.pretrained)),
        constitution,
        [rng.choice(constitution.principles) for _ in range(count)],
        [answers[0].prompts[i // k] for i in range(count)],
        [[x.completions[i] for x in answers] for i in range(count)],
    )
    better = np.array([preferred(v) for v in verdicts]).reshape(
        -1, k, *verdicts[0].shape
    )
    return {(a, b): better[:, :, a, b] for a, b in pairs}, {
        "position_bias": first_bias(verdicts),
        "swap_consistency": swap_consistency(verdicts),
    }


def answer_rows(
    names: list[str], answers: list[Asked], k: int
) -> Iterator[dict[str, Any]]:
    """A line a prompt and policy."""
    for i, prompt in enumerate(answers[0].prompts):
        for name, found in zip(names, answers, strict=True):
            own = slice(i * k, (i + 1) * k)
            scores = {x: values[own].tolist() for x, values in found.scores.items()}
            texts = {"completions": found.completions[own]}
            yield {"prompt": prompt, "policy": name} | texts | scores


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
