"""What PPO and the algorithms without a critic are asked and given."""

import dataclasses
from pathlib import Path
from typing import Any, Generic, NamedTuple

from experiments.inputs import DataConfig, read_prompts
from experiments.networks import Algorithm, fit_to_policy, load_reward
from experiments.runs import RunConfig
from experiments.stages import Stage, load_policy
from rlhf_jax.models import CacheDType
from rlhf_jax.optim import OptimConfig
from rlhf_jax.rewards import RewardFunction, ScoreKind, load_reward_function
from rlhf_jax.types import TokenBatch


@dataclasses.dataclass(frozen=True)
class OnlineConfig(RunConfig):
    """A policy that learns from scores of what it samples."""

    policy: Path = Path("runs/sft")
    """The policy to start from, which stays the reference: run directory, checkpoint of
    transformers or hub id."""
    reward: str = "runs/reward"
    """A reward model: run directory or checkpoint; or a function, module:function."""
    reward_kind: ScoreKind = "score"
    """What of a reward model is the reward; logit or probability for classifiers."""
    reward_label: str | None = None
    """Which label of a classifier is the good one: its name or index."""
    gold: str | None = None
    """The truth, as module:function, where it is known: logged, never trained on."""
    data: DataConfig = DataConfig("tfds:tiny_reviews/prompts:train")
    """Prompts."""
    prompt_words: int | None = None
    """Takes this many first words of a text column; none reads a prompt column."""
    prompt_length: int = 12
    """Tokens of a prompt at most."""
    stop_text: str | None = None
    """Tokens of this text end a response, too, besides the end token."""
    pack_length: int | None = None
    """Tokens of a row that episodes share in the updates; none gives each its own."""
    prompt_buckets: tuple[int, ...] = ()
    """Widths below prompt_length; a batch gets the least that holds its prompts."""
    cache_dtype: CacheDType | None = None
    """Of keys and values while sampling; none for that of the activations."""
    optim: OptimConfig = OptimConfig(learning_rate=3e-4, schedule="linear", eps=1e-5)
    """Optimiser and schedule."""
    episodes: int = 5_120
    """Episodes in all."""
    batch_size: int = 128
    """Episodes an iteration, all devices together."""
    eval_samples: int = 256
    """Samples of the policy before and after training."""
    save_every: int = 20
    """Iterations between checkpoints."""


class Given(NamedTuple, Generic[Algorithm]):
    """What such a script is given."""

    policy: Stage
    reward: Stage | RewardFunction
    gold: RewardFunction | None
    algorithm: Algorithm  # with the policy's stop tokens and padding
    loader: Any  # of prompts
    asked: TokenBatch  # held-out prompts


def read(config: OnlineConfig, algorithm: Algorithm) -> Given[Algorithm]:
    """The earlier stages, the prompts, and the algorithm with the policy's tokens."""
    policy = load_policy(config.policy, config.pretrained)
    judged_by = config.reward, config.reward_kind, policy, config.pretrained
    reward = load_reward(*judged_by, config.reward_label)
    gold = None if config.gold is None else load_reward_function(config.gold)
    algorithm = fit_to_policy(algorithm, policy, config.prompt_length, config.stop_text)
    prompts = read_prompts(
        config.data,
        policy.tokenizer,
        words=config.prompt_words,
        lengths=(*config.prompt_buckets, config.prompt_length),
        seed=config.seed,
    )
    completions = algorithm.sampling.completions
    loader = prompts.loader(config.batch_size // completions, seed=config.seed)
    asked = prompts.held_out_batch(config.eval_samples // completions)
    return Given(policy, reward, gold, algorithm, loader, asked)
