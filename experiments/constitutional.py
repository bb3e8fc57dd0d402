"""Constitutional AI: a policy that follows principles, from a model's own feedback.

Bai et al. 2022, arXiv:2212.08073.

  python -m experiments.constitutional
  python -m experiments.constitutional \
    --constitution experiments/constitutions/blunt.toml --run-dir runs/blunt
  python -m experiments.constitutional --assistant Qwen/Qwen2.5-0.5B-Instruct \
    --constitution mine.toml --data.path prompts.jsonl --measures my_module:my_function

1. The assistant answers prompts, criticises its answers as the principles request, and
   revises them; the policy is fine-tuned on the revisions.
2. The policy answers prompts twice; the assistant says which answer is better under a
   principle drawn for each, asked in both orders. A reward model learns that, and PPO
   the policy.

Without --assistant one is trained first, on reviews that are courteous, rude, both or
neither, and on what an assistant does with them: see `experiments.manners`. It knows
polite principles and their opposites, so that what comes of it is the constitution's.

The run directory keeps every question and reply: revisions.jsonl, verdicts.jsonl. What
is there is not made again. Measured: see docs/constitutional.md.
"""

import dataclasses
import random
from pathlib import Path
from typing import Any

import numpy as np

from experiments import cli, policy, reward_model, sft
from experiments.inputs import DataConfig, prompt_parsers
from experiments.manners import train_assistant
from experiments.principled import (
    answer,
    keep_rows,
    last_responses,
    preferences,
    transcripts,
    verdicts,
)
from experiments.principled_report import Answers, report
from experiments.reading import read_data
from experiments.runs import RunConfig, for_stages
from rlhf_jax.data import write_rows
from rlhf_jax.feedback.constitution import read_constitution
from rlhf_jax.feedback.judging import print_verdicts
from rlhf_jax.models import TransformerConfig
from rlhf_jax.optim import OptimConfig
from rlhf_jax.rundir import create_run_dir
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.stages import load_policy
from rlhf_jax.steps import KLConfig, PolicyConfig

MODEL = dataclasses.replace(sft.SMALL, max_length=160)  # the longest of questions
MANNERS = tuple(
    f"experiments.manners:{name}" for name in ("polite", "courteous", "rude")
)


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """Principles, a model's own feedback, and PPO."""

    run_dir: Path = Path("runs/constitutional")
    """Where transcripts, stages, the table and the picture go."""
    constitution: Path = Path(__file__).parent / "constitutions" / "polite.toml"
    """Principles, with what the assistant is asked about them."""
    assistant: Path | None = None
    """Answers, criticises, revises and judges: run directory, checkpoint of
    transformers or hub id; none trains one on reviews."""
    demonstrations: int = 64_000
    """Of its work, to train it."""
    model: TransformerConfig = MODEL
    """Its network; vocab_size is that of the tokenizer to train."""
    data: DataConfig = DataConfig(
        "tfds:tiny_reviews/prompts:train", "tfds:tiny_reviews/prompts:test"
    )
    """Prompts."""
    measures: tuple[str, ...] = MANNERS
    """What answers are measured by, module:function; PPO logs the first as gold."""
    responses: int = 1_024
    """Answers to revise."""
    revisions: int = 2
    """Of each answer, one after the other, each under a principle of its own."""
    pairs: int = 2_048
    """Pairs of answers to judge."""
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=44)
    """Of answers."""
    replying: SamplingConfig = SamplingConfig(max_new_tokens=44, temperature=0.3)
    """Of critiques and revisions."""
    fine_tuning: OptimConfig = OptimConfig(1e-3, schedule="cosine", warmup=5)
    """Optimiser on the revisions."""
    algorithm: PolicyConfig = PolicyConfig(
        SamplingConfig(max_new_tokens=44), kl=KLConfig(coef=0.1)
    )
    """The algorithm of stage 2."""
    episodes: int = 5_120
    """Of PPO."""
    prompt_length: int = 24
    """Tokens of a prompt at most."""


def main(config: Config) -> list[Answers]:
    """Makes what is not there yet, and measures what each stage answers."""
    run_dir = create_run_dir(config.run_dir, config, resume=config.resume)
    constitution = read_constitution(config.constitution)
    data_dir = config.data.data_dir or run_dir / "data"
    data = dataclasses.replace(config.data, data_dir=data_dir)
    texts = read_data(data, prompt_parsers(None), run_dir=run_dir, seed=config.seed)
    asked = [prompt.prompt for prompt in texts.learned]
    held_out = [prompt.prompt for prompt in texts.held_out]
    rng = lambda part: random.Random(f"{part}/{config.seed}")
    common = for_stages(config)

    # 1. Critiques and revisions; the policy learns to answer like that at once.
    asking: Any = {"seed": config.seed, "devices": config.devices}
    path = config.assistant or train_assistant(
        run_dir, config.model, config.demonstrations, **asking
    )
    assistant = load_policy(path, config.pretrained)
    revised = keep_rows(
        run_dir / "revisions.jsonl",
        transcripts,
        assistant,
        constitution,
        rng("asked").choices(asked, k=config.responses),
        sampling=config.sampling,
        replying=config.replying,
        revisions=config.revisions,
        rng=rng("revised"),
    )
    write_rows(last_responses(revised), run_dir / "demonstrations.jsonl")
    sft.main(
        sft.Config(
            run_dir / "sft",
            DataConfig(str(run_dir / "demonstrations.jsonl")),
            policy=path,
            optim=config.fine_tuning,
            **common,
        )
    )

    # 2. Which of its answers is better, by a principle; a reward model learns that.
    fine_tuned = load_policy(run_dir / "sft", config.pretrained)
    judged = keep_rows(
        run_dir / "verdicts.jsonl",
        verdicts,
        fine_tuned,
        assistant,
        constitution,
        rng("asked twice").choices(asked, k=config.pairs),
        sampling=config.sampling,
        rng=rng("judged"),
    )
    print_verdicts([np.array(row["verdict"]) for row in judged])
    write_rows(preferences(judged), run_dir / "preferences.jsonl")
    learn_reward(run_dir, common)

    # 3. PPO on that reward, leashed to the fine-tuned policy.
    policy.main(
        policy.Config(
            run_dir / "ppo",
            policy=run_dir / "sft",
            reward=str(run_dir / "reward"),
            gold=config.measures[0],
            data=data,
            prompt_length=config.prompt_length,
            algorithm=config.algorithm,
            episodes=config.episodes,
            **common,
        )
    )

    # 4. What each says to prompts that none has seen.
    trained = load_policy(run_dir / "ppo", config.pretrained)
    stages = {"assistant": assistant, "fine-tuned": fine_tuned, "PPO": trained}
    ask = lambda policy: answer(policy, held_out, config.sampling, config.seed)
    answers = {name: ask(policy) for name, policy in stages.items()}
    return report(run_dir, held_out, answers, revised, judged, config.measures)


def learn_reward(run_dir: Path, common: dict[str, Any]) -> None:
    """A reward model, from the fine-tuned policy on."""
    reward_model.main(
        reward_model.Config(
            run_dir / "reward",
            DataConfig(str(run_dir / "preferences.jsonl")),
            kind="pairwise",
            policy=run_dir / "sft",
            normalize=True,
            **common,
        )
    )


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
