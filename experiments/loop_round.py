"""Where a round of the loop lies, and what the policy answers in it."""

import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import sft
from experiments.inputs import DataConfig, prompt_parsers
from experiments.reading import read_data
from experiments.stops import heed_stop
from rlhf_jax.data import write_rows
from rlhf_jax.errors import UserError
from rlhf_jax.feedback import sample_completions
from rlhf_jax.feedback.page.items import make_items
from rlhf_jax.rewards import call_reward_function, load_reward_function
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.stages import load_policy

PROMPTS = DataConfig(
    "tfds:tiny_reviews/prompts:train", eval_path="tfds:tiny_reviews/prompts:test"
)
TINY = dataclasses.replace(
    sft.SMALL, d_model=64, n_layers=1, n_heads=2, n_kv_heads=2, d_ff=128
)


class Round(NamedTuple):
    """Once round the loop, and where its files lie."""

    run_dir: Path
    policy: Path | None  # that all rounds begin with; None trains one
    data: DataConfig  # prompts
    devices: int | None
    seed: int
    number: int  # from 1

    @property
    def root(self) -> Path:
        return self.run_dir / f"seed{self.seed}"

    @property
    def here(self) -> Path:
        return self.root / f"round{self.number}"

    @property
    def before(self) -> Path | None:
        return self.root / f"round{self.number - 1}" if self.number > 1 else None

    @property
    def sft(self) -> Path:
        return self.policy or self.root / "sft"

    @property
    def current(self) -> Path:
        """The policy that the round finds."""
        return self.sft if self.before is None else self.before / "ppo"

    @property
    def prompts(self) -> DataConfig:
        data_dir = self.data.data_dir or self.run_dir / "data"
        return dataclasses.replace(self.data, data_dir=data_dir)

    @property
    def shared(self) -> dict[str, Any]:
        """What every script is asked; each round has randomness of its own."""
        seed = 1_000 * self.seed + self.number
        return {"seed": seed, "devices": self.devices, "resume": True}


def write_once(path: Path, rows: Callable[..., Sequence[Any]], *args: Any) -> None:
    """Writes rows where there is no such file yet: whole, or not at all."""
    if not path.exists():
        heed_stop(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_rows(rows(*args), path)


def train_sft(this: Round) -> dict[str, float]:
    """The policy that all rounds begin with."""
    reviews = "tfds:tiny_reviews/reviews:"
    data = dataclasses.replace(
        this.prompts, path=f"{reviews}train", eval_path=f"{reviews}test"
    )
    return sft.main(sft.Config(this.sft, data, model=TINY, **this.shared))


def answer(
    this: Round, policy: Path, count: int, sampling: SamplingConfig, gold: str | None
) -> list[dict[str, Any]]:
    """Completions of so many prompts that no other round has."""
    data = {"run_dir": this.here, "seed": this.seed}
    found = read_data(this.prompts, prompt_parsers(None), **data)
    texts = [prompt.prompt for prompt in found.learned]
    asked = fresh_prompts(texts, count, seed=this.seed, number=this.number)
    return sample(policy, asked, sampling, gold, seed=this.shared["seed"])


def fresh_prompts(
    texts: Sequence[str], each: int, *, seed: int, number: int
) -> list[str]:
    """The prompts of a round, which no other round has."""
    distinct = list(dict.fromkeys(texts))
    random.Random(f"loop/prompts/{seed}").shuffle(distinct)
    if number * each > len(distinct):
        raise UserError(
            f"round {number}: {number} · prompts = {number * each} are more than the "
            f"{len(distinct)} different prompts that there are; ask for fewer a round, "
            "or give more with --data.path"
        )
    return distinct[(number - 1) * each : number * each]


def sample(
    policy: Path,
    prompts: Sequence[str],
    sampling: SamplingConfig,
    gold: str | None,
    *,
    seed: int,
) -> list[dict[str, Any]]:
    """A row a prompt, with completions that differ, and their truth if it is known."""
    rows, left_out = [], 0
    truth = None if gold is None else load_reward_function(gold)
    for prompt, texts in sample_completions(
        load_policy(policy), prompts, sampling, seed=seed
    ):
        items, fewer = make_items(prompt, texts, "ranking")
        left_out += fewer
        for item in items:
            row = {"prompt": prompt, "completions": list(item.completions)}
            if truth is not None:
                asked = [prompt] * len(item.completions), row["completions"]
                row["golds"] = call_reward_function(truth, *asked).tolist()
            rows.append(row)
    print(
        f"{policy}: {len(rows)} of {len(prompts)} prompts have answers to rank; "
        f"{left_out} answers left out: empty, equal, or the only one"
    )
    if not rows:
        raise UserError(
            f"{policy}: no prompt has two different answers: there is nothing to rank; "
            "raise --kl-coef or --sampling.temperature"
        )
    return rows
