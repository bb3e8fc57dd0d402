"""What scripts have in common that ask a policy and score what it answers."""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.inputs import DataConfig, prompt_parsers, tokenize_asked
from experiments.networks import make_networks, told_columns
from experiments.reading import read_data, tokenize_data
from experiments.rollouts import decode, make_scorer
from rlhf_jax.data import batches, collate_prompts
from rlhf_jax.parallel import (
    data_parallel,
    local_devices,
    replicate,
    shard,
    unshard,
)
from rlhf_jax.rewards import RewardFunction, ScoreKind, call_reward_function
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.stages import FLOAT32, PretrainedConfig, Stage
from rlhf_jax.steps import sample_step
from rlhf_jax.terminal import progress
from rlhf_jax.types import Array


@dataclasses.dataclass(frozen=True)
class AskConfig:
    """Prompts, how they are answered, and what scores the answers."""

    run_dir: Path = Path("runs/asked")
    """Where what is found goes."""
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
    """Some prompts' completions, n each, one after the other."""

    prompts: list[str]
    completions: list[str]
    scores: dict[str, np.ndarray]  # by the reward, and by gold, if there is one
    ended: np.ndarray  # by a stop token
    logprobs: np.ndarray  # float64 nats of the completion, at the temperature

    def by_prompt(self, name: str, completions: int) -> np.ndarray:
        """[N, K] scores."""
        return self.scores[name].reshape(-1, completions)


def read_asked(
    config: AskConfig, tokenizer: Any, run_dir: Path, *, held_out: bool = False
) -> list[tuple[Any, Any]]:
    """Prompts as they are read, and as token ids; those held back, too, if asked for.

    What only measures has no use for holding some back.
    """
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

    learned, others = tokenize_data(config.data, texts, tokenize)
    return [*learned, *(others if held_out else [])][: config.prompts]


def ask(
    config: AskConfig,
    prompts: list[Any],
    policy: Stage,
    reward: Stage | RewardFunction,
    gold: RewardFunction | None,
    *,
    key: Array,
    title: str,
) -> Asked:
    """n completions of every prompt, scored."""
    found = list(_ask(config, prompts, policy, reward, gold, key, title))
    return Asked(
        [text for x in found for text in x.prompts],
        [text for x in found for text in x.completions],
        {n: np.concatenate([x.scores[n] for x in found]) for n in found[0].scores},
        np.concatenate([x.ended for x in found]),
        np.concatenate([x.logprobs for x in found]),
    )


def _ask(
    config: AskConfig,
    prompts: list[Any],
    policy: Stage,
    reward: Stage | RewardFunction,
    gold: RewardFunction | None,
    key: Array,
    title: str,
) -> Iterator[Asked]:
    """Some prompts at a time."""
    devices, tokenizer = local_devices(config.devices), policy.tokenizer
    nets = make_networks(policy, reward, None, None, None, key=key)
    n, length, pad = (
        config.sampling.completions,
        config.prompt_length,
        config.sampling.pad_id,
    )
    reward, gold = (told_columns(r, prompts, tokenizer) for r in (reward, gold))
    collate = functools.partial(collate_prompts, length=length, pad_id=pad)
    params, judge = replicate((policy.params, nets.judge), devices)
    score = make_scorer(reward, judge, config.reward_kind, tokenizer, devices)
    step = functools.partial(
        sample_step, apply_fn=nets.sample_fn, config=config.sampling, layout=nets.layout
    )
    sample = data_parallel(step, devices, in_axes=(None, 0, 0), out_axes=0)
    row = np.arange(config.batch_size, dtype=np.int32)
    with progress(title, len(prompts), done=0) as advance:
        for batch, real in batches(prompts, config.batch_size, collate):
            rollout = sample(params, *shard((batch, row), devices), key=key)
            scores = {"score": np.asarray(unshard(score(rollout)))}
            whole = unshard(rollout)
            prompt_texts, completions = decode(tokenizer, whole)
            if gold is not None:
                scores["gold"] = call_reward_function(gold, prompt_texts, completions)
            count = n * int(real.sum())  # without the rows that fill the last batch
            logprobs = np.asarray(whole.logprobs, np.float64)
            yield Asked(
                prompt_texts[:count:n],
                completions[:count],
                {name: x[:count] for name, x in scores.items()},
                ~np.asarray(whole.truncated)[:count],
                np.sum(logprobs[:count], axis=1),
            )
            advance({"reward": scores["score"].mean()}, steps=int(real.sum()))
            row = row + config.batch_size
