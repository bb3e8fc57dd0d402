"""How good a reward model is: on held-out pairs, on fresh samples, under idle edits.

  python -m experiments.reward_quality --reward runs/reward
  python -m experiments.reward_quality --reward runs/reward --policy runs/ppo \\
    --gold rlhf_jax.data.tiny_reviews:gold_reward

On held-out pairs: accuracy, by margin, too; whether the response that scores higher is
preferred as often as σ(r₁ − r₂) says; how far scores go with length; and what edits do
to them that must not matter. With --policy and --gold, which scores what is true: how
far both agree on fresh samples of that policy. Written are calibration.json,
quality.json and a picture: docs/evaluation.md.
"""

import dataclasses
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import cli
from experiments.aside import say_put_aside
from experiments.asking import AskConfig, ask
from experiments.calibrating import CALIBRATION, calibration_summary, margin_rows
from experiments.ends import ends, known
from experiments.inputs import DataConfig, tokenize_asked
from experiments.judgements import PAIRS
from experiments.networks import fit_to_policy, load_reward
from experiments.pair_scores import (
    Judged,
    PairScorer,
    edited,
    judge_pairs,
    make_pair_scorer,
    sides,
    text_of,
)
from experiments.quality_report import draw, show
from experiments.reading import read_data, tokenize_data
from rlhf_jax.data import Conversation, Preference, Prompt, sort_out
from rlhf_jax.errors import UserError
from rlhf_jax.evaluation import (
    EDITS,
    accuracy_by_margin,
    correlation,
    edit_robustness,
    gold_agreement,
)
from rlhf_jax.rewards import RewardFunction, ScoreKind, load_reward_function
from rlhf_jax.rundir import create_run_dir, save_json
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.stages import FLOAT32, PretrainedConfig, Stage, load_policy


@dataclasses.dataclass(frozen=True)
class Config:
    """The quality of a reward."""

    run_dir: Path = Path("runs/reward_quality")
    """Where the numbers and the picture go."""
    reward: str = "runs/reward"
    """A reward model: run directory or checkpoint; or a function, module:function."""
    reward_kind: ScoreKind = "score"
    """What of a reward model is the reward; logit or probability for classifiers."""
    reward_label: str | None = None
    """Which label of a classifier is the good one: its name or index."""
    data: DataConfig = DataConfig("tfds:tiny_reviews/rankings:test")
    """Pairs, or rankings of which all pairs are taken, that nothing learned from."""
    policy: Path | None = None
    """Of fresh samples, with --gold: run directory, checkpoint or hub id."""
    gold: str | None = None
    """The truth, as module:function, where it is known."""
    prompts: int = 256
    """How many of the pairs' prompts the policy answers."""
    prompt_length: int = 12
    """Tokens of a prompt at most, for the policy."""
    stop_text: str | None = None
    """Tokens of this text end a sample, too, besides the end token."""
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=24, completions=4)
    """How the policy's responses are drawn."""
    batch_size: int = 16
    """Prompts that the policy answers at a time, all devices together."""
    pretrained: PretrainedConfig = FLOAT32
    """Checkpoints of transformers."""
    devices: int | None = None
    """Number of devices; none uses all."""
    seed: int = 0
    """Of the bootstraps, the prompts and the samples."""

    def __post_init__(self):
        if self.policy is not None and self.gold is None:
            raise UserError("--policy needs --gold: what is it to agree with?")


def main(config: Config) -> dict[str, Any]:
    """Scores the pairs and the samples, and returns the summary."""
    run_dir = create_run_dir(config.run_dir, config, resume=False)
    policy = None
    if config.policy is not None:
        policy = load_policy(config.policy, config.pretrained)
    judged_by = config.reward, config.reward_kind, policy, config.pretrained
    reward = load_reward(*judged_by, config.reward_label)
    gold = None if config.gold is None else load_reward_function(config.gold)
    texts = read_data(config.data, PAIRS, run_dir=run_dir, seed=config.seed)
    too_long, count = config.data.too_long, config.devices
    scorer = make_pair_scorer(reward, config.reward_kind, too_long, count)
    pairs = [*chain(*tokenize_data(config.data, texts, scorer.check))]

    judged, rng = judge_pairs(pairs, scorer), np.random.default_rng(config.seed)
    found = calibration_summary(judged.differences(), judged.groups)
    save_json(run_dir / CALIBRATION, found)
    found |= {"length": length_bias(judged, rng), "edits": robustness(judged, scorer)}
    if gold is not None:
        truth = make_pair_scorer(gold, "score", too_long, count).score(pairs)
        apart = np.abs(truth[:, 0] - truth[:, 1])
        of = judged.differences(), judged.groups
        found["gold_margins"] = margin_rows(accuracy_by_margin(*of, margins=apart))
    if policy is not None and gold is not None:
        found["fresh"] = fresh_agreement(config, pairs, policy, reward, gold, rng)
    save_json(run_dir / "quality.json", found)
    show(found)
    draw(found, judged, run_dir / "quality.png")
    print(f"numbers: {run_dir / 'quality.json'}  picture: quality.png there")
    say_put_aside(run_dir)
    return found


def length_bias(judged: Judged, rng: np.random.Generator) -> dict[str, Any]:
    """Scores against lengths, and their differences over pairs."""
    words, twice = judged.lengths, np.repeat(judged.groups, 2)
    both = {
        "score": (judged.scores.ravel(), words.ravel(), twice),
        "difference": (judged.differences(), words[:, 0] - words[:, 1], judged.groups),
    }
    names = {"pearson": False, "spearman": True}
    return {
        f"{what}_{name}": ends(correlation(*given, rank=rank, rng=rng))
        for what, given in both.items()
        for name, rank in names.items()
    }


def robustness(judged: Judged, scorer: PairScorer) -> dict[str, Any]:
    """Every edit of `EDITS`, of both sides of all pairs that still fit."""
    found = {}
    for name, edit in EDITS.items():
        others = [edited(pair, edit) for pair in judged.pairs]
        fitting, too_long = sort_out(others, scorer.check)
        fit = np.isin([id(p) for p in others], [id(p) for p in fitting])
        changed = [
            [text_of(a) != text_of(b) for a, b in zip(sides(p), sides(q), strict=True)]
            for p, q in zip(judged.pairs, others, strict=True)
        ]
        scores, after = judged.scores[fit], scorer.score(fitting)
        of = edit_robustness(scores, after, np.array(changed)[fit], judged.groups[fit])
        numbers = {"shift": known(of.shift), "change": known(of.change)}
        counts = {"texts": of.texts, "pairs_too_long": len(too_long)}
        found[name] = numbers | {"flips": ends(of.flips)} | counts
    return found


def fresh_agreement(
    config: Config,
    pairs: list[Preference[Any]],
    policy: Stage,
    reward: Stage | RewardFunction,
    gold: RewardFunction,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Reward and truth on what the policy answers to the pairs' prompts."""
    prompts = list({repr(p.prompt): p for p in pairs}.values())[: config.prompts]
    texts = [
        Prompt(p.prompt, p.origin)
        if isinstance(p.prompt, str)
        else Conversation(p.prompt, p.origin)
        for p in prompts
    ]
    names = {f.name for f in dataclasses.fields(AskConfig)}
    asking = AskConfig(**{k: v for k, v in vars(config).items() if k in names})
    asking = fit_to_policy(asking, policy, config.prompt_length, config.stop_text)
    limits: Any = {"max_prompt_length": config.prompt_length}
    limits |= {"too_long": config.data.too_long}
    asked = tokenize_asked(texts, policy.tokenizer, **limits)
    title, key = "fresh samples", jax.random.key(config.seed)
    found = ask(asking, asked, policy, reward, gold, key=key, title=title)
    k = config.sampling.completions
    scores, truth = (found.by_prompt(name, k) for name in ("score", "gold"))
    agreed = gold_agreement(scores, truth, rng=rng)
    return {
        "pairwise": ends(agreed.pairwise),
        "spearman": ends(agreed.spearman),
        "spearman_within": ends(agreed.spearman_within),
        "pairs": agreed.pairs,
        "prompts": len(prompts),
    }


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
