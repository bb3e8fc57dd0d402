"""Best of n: what a reward is good for without a gradient, and data for fine-tuning.

Nakano et al. 2021 (WebGPT), arXiv:2112.09332; Gao et al. 2022, arXiv:2210.10760.

  python -m experiments.best_of_n --policy runs/sft --reward runs/reward
  python -m experiments.sft --data.path runs/best_of_n/best.jsonl --policy runs/sft

Draws n completions a prompt, scores them, and writes what the best of k is expected to
score, k = 1 … n, beside its distance from the policy, at most log k − (k−1)/k nats
(arXiv:2401.01879). The best completions are demonstrations for `experiments.sft`:
rejection-sampling fine-tuning.
"""

import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import cli
from experiments.aside import say_put_aside
from experiments.best_of_k import curve, demonstrations, ends, report
from experiments.inputs import DataConfig, prompt_parsers, tokenize_asked
from experiments.networks import (
    Networks,
    fit_to_policy,
    load_reward,
    make_networks,
    told_columns,
)
from experiments.reading import read_data, tokenize_data
from experiments.rollouts import decode, make_scorer
from rlhf_jax.data import batches, collate_prompts
from rlhf_jax.parallel import (
    Devices,
    data_parallel,
    local_devices,
    replicate,
    shard,
    unshard,
)
from rlhf_jax.rewards import (
    RewardFunction,
    ScoreKind,
    call_reward_function,
    load_reward_function,
)
from rlhf_jax.rundir import create_run_dir
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.stages import FLOAT32, PretrainedConfig, Stage, load_policy
from rlhf_jax.steps import sample_step
from rlhf_jax.terminal import progress


@dataclasses.dataclass(frozen=True)
class Config:
    """The best of n completions."""

    run_dir: Path = Path("runs/best_of_n")
    """Where the curve, its picture and the best completions go."""
    policy: Path = Path("runs/sft")
    """The policy: run directory, checkpoint of transformers or hub id."""
    reward: str = "runs/reward"
    """A reward model: run directory or checkpoint; or a function, module:function."""
    reward_kind: ScoreKind = "score"
    """What of a reward model is the reward; logit or probability for classifiers."""
    reward_label: str | None = None
    """Which label of a classifier is the good one: its name or index."""
    gold: str | None = None
    """The truth, as module:function, where it is known; chooses nothing."""
    data: DataConfig = DataConfig("tfds:tiny_reviews/prompts:train")
    """Prompts; those held back are not asked."""
    prompts: int = 256
    """How many of them."""
    prompt_words: int | None = None
    """Takes this many first words of a text column; none reads a prompt column."""
    prompt_length: int = 12
    """Tokens of a prompt at most."""
    stop_text: str | None = None
    """Tokens of this text end a completion, too, besides the end token."""
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=24, completions=16)
    """How completions are drawn; n of them."""
    batch_size: int = 16
    """Prompts at a time, all devices together."""
    pretrained: PretrainedConfig = FLOAT32
    """Checkpoints of transformers."""
    devices: int | None = None
    """Number of devices; none uses all."""
    seed: int = 0
    """Of the prompts and of sampling."""


class Asked(NamedTuple):
    """Some prompts' completions, n each."""

    completions: list[str]
    scores: dict[str, np.ndarray]  # by the reward, and by gold, if there is one
    ended: np.ndarray  # by a stop token


def main(config: Config) -> dict[str, float]:
    """Draws and writes; returns the ends of the curve."""
    run_dir = create_run_dir(config.run_dir, config, resume=False)
    devices = local_devices(config.devices)
    policy = load_policy(config.policy, config.pretrained)
    judged_by = config.reward, config.reward_kind, policy, config.pretrained
    reward = load_reward(*judged_by, config.reward_label)
    gold = None if config.gold is None else load_reward_function(config.gold)
    config = fit_to_policy(config, policy, config.prompt_length, config.stop_text)
    asked = read_asked(config, policy.tokenizer, run_dir)[: config.prompts]
    texts = [text for text, _ in asked]
    nets = make_networks(
        policy, reward, None, None, None, key=jax.random.key(config.seed)
    )

    prompts = [prompt for _, prompt in asked]
    found = list(ask(config, prompts, policy, reward, gold, nets, devices))
    scores = {n: np.concatenate([x.scores[n] for x in found]) for n in found[0].scores}
    completions = [text for x in found for text in x.completions]
    ended = np.concatenate([x.ended for x in found])
    best = curve(scores, config.sampling.completions)
    rows = demonstrations(texts, completions, scores, ended)
    with (run_dir / "best.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    report(best, run_dir, len(texts))
    print(f"{run_dir}/best.jsonl: {len(rows)} of {len(texts)} prompts, as --data.path")
    say_put_aside(run_dir)
    return {"kl": best["kl"][-1], "kept": len(rows)} | ends(best)


def read_asked(config: Config, tokenizer: Any, run_dir: Path) -> list[tuple[Any, Any]]:
    """Prompts as they are read, and as token ids."""
    parsers = prompt_parsers(config.prompt_words)
    texts = read_data(config.data, parsers, run_dir=run_dir, seed=config.seed)

    def tokenize(texts: list[Any]) -> list[tuple[Any, Any]]:
        ids = tokenize_asked(
            texts,
            tokenizer,
            max_prompt_length=config.prompt_length,
            too_long=config.data.too_long,
        )
        return [*zip(texts, ids, strict=True)]

    return tokenize_data(config.data, texts, tokenize)[0]


def ask(
    config: Config,
    prompts: list[Any],
    policy: Stage,
    reward: Stage | RewardFunction,
    gold: RewardFunction | None,
    nets: Networks,
    devices: Devices,
) -> Iterator[Asked]:
    """n completions of every prompt, some prompts at a time."""
    tokenizer, n = policy.tokenizer, config.sampling.completions
    length, pad = config.prompt_length, config.sampling.pad_id
    reward, gold = (told_columns(r, prompts, tokenizer) for r in (reward, gold))
    collate = functools.partial(collate_prompts, length=length, pad_id=pad)
    params, judge = replicate((policy.params, nets.judge), devices)
    score = make_scorer(reward, judge, config.reward_kind, tokenizer, devices)
    step = functools.partial(
        sample_step, apply_fn=nets.sample_fn, config=config.sampling, layout=nets.layout
    )
    sample = data_parallel(step, devices, in_axes=(None, 0, 0), out_axes=0)
    row, key = np.arange(config.batch_size, dtype=np.int32), jax.random.key(config.seed)
    with progress("best of n", len(prompts), done=0) as advance:
        for batch, real in batches(prompts, config.batch_size, collate):
            rollout = sample(params, *shard((batch, row), devices), key=key)
            scores = {"score": np.asarray(unshard(score(rollout)))}
            whole = unshard(rollout)
            prompt_texts, completions = decode(tokenizer, whole)
            if gold is not None:
                scores["gold"] = call_reward_function(gold, prompt_texts, completions)
            count = n * int(real.sum())  # without the rows that fill the last batch
            yield Asked(
                completions[:count],
                {name: x[:count] for name, x in scores.items()},
                ~np.asarray(whole.truncated)[:count],
            )
            advance({"reward": scores["score"].mean()}, steps=int(real.sum()))
            row = row + config.batch_size


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
