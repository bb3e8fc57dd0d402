"""What the scripts whose policy samples are asked and given."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, NamedTuple

import numpy as np

from experiments.inputs import DEMONSTRATIONS, read_prompts, tokenize_imitation
from experiments.networks import (
    Algorithm,
    fit_to_policy,
    load_reward,
    told_columns,
)
from experiments.reading import DataConfig, read_data, tokenize_data
from experiments.runs import RunConfig
from experiments.watching import WatchConfig
from rlhf_jax.models import CacheDType
from rlhf_jax.optim import OptimConfig
from rlhf_jax.parallel import Where, shard
from rlhf_jax.rewards import (
    RewardFunction,
    ScoreKind,
    load_reward_function,
)
from rlhf_jax.stages import Stage, load_policy, pad_id
from rlhf_jax.types import TokenBatch


@dataclasses.dataclass(frozen=True)
class OnlineConfig(WatchConfig, RunConfig):
    """A policy that learns from scores of what it samples."""

    policy: Path = Path("runs/sft")
    """The policy to start from, which stays the reference: run directory, checkpoint of
    transformers or hub id."""
    reward: str = "runs/reward"
    """A reward model: run directory or checkpoint; or a function, module:function, of
    prompts, completions and the prompts' other columns."""
    reward_kind: ScoreKind = "score"
    """What of a reward model is the reward; logit or probability for classifiers."""
    reward_label: str | None = None
    """Which label of a classifier is the good one: its name or index."""
    reward_timeout: float | None = None
    """Seconds that a reward function may take for a batch; none waits for ever."""
    reward_retries: int = 0
    """How often a reward function is called again that was late or raised."""
    gold: str | None = None
    """The truth, as module:function, where it is known: logged, never trained on."""
    referee: tuple[str, ...] = ()
    """Rewards as for --reward, such as a model trained on pairs that were held back:
    they score every response, and nothing is optimised for them."""
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

    def calls(self) -> dict[str, Any]:
        """How reward functions are called."""
        return {"timeout": self.reward_timeout, "retries": self.reward_retries}


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
    algorithm = fit_to_policy(algorithm, policy, config.prompt_length, config.stop_text)
    prompts = read_prompts(
        config.data,
        policy.tokenizer,
        words=config.prompt_words,
        lengths=(*config.prompt_buckets, config.prompt_length),
        run_dir=config.run_dir,
        seed=config.seed,
    )
    known = prompts.learned + prompts.held_out, policy.tokenizer
    gold = None if config.gold is None else load_reward_function(config.gold)
    reward, gold = told_columns(reward, *known), told_columns(gold, *known)
    completions = algorithm.sampling.completions
    loader = prompts.loader(config.batch_size // completions, seed=config.seed)
    asked = prompts.held_out_batch(config.eval_samples // completions)
    return Given(policy, reward, gold, algorithm, loader, asked)


def read_demonstrations(
    config: OnlineConfig, path: str | None, policy: Stage, rows: int, devices: Where
) -> Callable[[int], TokenBatch | None]:
    """A function of the iteration: demonstrations that stand beside its episodes.

    They are drawn anew each time from the seed and the iteration, so that there is no
    place to keep. None where there is no path.
    """
    if path is None:
        return lambda step: None
    data = dataclasses.replace(config.data, path=path, eval_path=None)
    where = {"run_dir": config.run_dir, "seed": config.seed}
    texts = read_data(data, DEMONSTRATIONS, **where)
    tokenize = functools.partial(
        tokenize_imitation,
        tokenizer=policy.tokenizer,
        max_length=policy.model.max_length,
        too_long=data.too_long,
    )
    learned, _ = tokenize_data(data, texts, tokenize)
    length, pad = max(learned.lengths), pad_id(policy.tokenizer)

    def drawn(step: int) -> TokenBatch:
        rng = np.random.default_rng((config.seed, step))
        chosen = rng.integers(len(learned.examples), size=rows)
        examples = [learned.examples[i] for i in chosen]
        return shard(learned.collate(examples, length=length, pad_id=pad), devices)

    return drawn
