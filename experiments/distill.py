"""A student learns a teacher's distributions on what it writes itself: GKD.

Agarwal et al. 2023, arXiv:2306.13649; with β = 1, the default, the reverse KL of
MiniLLM, arXiv:2306.08543, of each token.

  python -m experiments.distill --policy runs/small --teacher runs/sft
  python -m experiments.distill --distillation.on-policy 0.5 --data.path answered.jsonl

Both are policies with one tokenizer. In an update the student answers prompts and is
told the teacher's distribution of every token; where on-policy is below 1, so is the
share of such updates, and the others take the data's completions.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments import cli
from experiments.aside import finish_run
from experiments.inputs import DataConfig, Prompts, read_prompts
from experiments.logs import ShowRollout, show_plan
from experiments.networks import fit_to_policy
from experiments.resuming import resume_state, running, start_run
from experiments.rollouts import gold_score, make_sampler
from experiments.runs import (
    RunConfig,
    check_micro_batches,
    on_batches,
    split_params,
)
from experiments.teaching import (
    evaluate_student,
    load_teacher,
    read_answered,
    report_student,
)
from rlhf_jax.data import make_loader
from rlhf_jax.models import decode_layout, policy_apply
from rlhf_jax.optim import OptimConfig, make_optimizer
from rlhf_jax.parallel import local_devices, replicate, shard
from rlhf_jax.rewards import RewardFunction, load_reward_function
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.stages import Stage, load_policy, save_model_files
from rlhf_jax.steps import (
    DistillationConfig,
    create_state,
    distillation_eval,
    distillation_step,
)
from rlhf_jax.types import TokenBatch


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """On-policy distillation."""

    run_dir: Path = Path("runs/distill")
    """Where checkpoints, metrics, samples and the report go."""
    policy: Path = Path("runs/small")
    """The student: run directory, checkpoint of transformers or hub id."""
    teacher: Path = Path("runs/sft")
    """The teacher, likewise; it reads the same tokens."""
    data: DataConfig = DataConfig("tfds:tiny_reviews/prompts:train")
    """Prompts; with completions, where on_policy is below 1."""
    distillation: DistillationConfig = DistillationConfig(SamplingConfig(24))
    """The algorithm."""
    optim: OptimConfig = OptimConfig(learning_rate=3e-4, schedule="linear")
    """Optimiser and schedule."""
    prompt_words: int | None = None
    """Takes this many first words of a text column; none reads a prompt column."""
    prompt_length: int = 12
    """Tokens of a prompt at most."""
    stop_text: str | None = None
    """Tokens of this text end a response, too, besides the end token."""
    gold: str | None = None
    """The truth, as module:function, where it is known: logged, never trained on."""
    updates: int = 200
    """Updates in all."""
    batch_size: int = 64
    """Prompts an update, all devices together."""
    eval_samples: int = 256
    """Responses to held-out prompts, before and after."""


def main(config: Config) -> dict[str, float]:
    """Trains, and returns what the student was like before and after."""
    run_dir = start_run(config)
    devices, total = local_devices(config.devices), config.updates
    parts = config.distillation.micro_batches
    check_micro_batches(parts, rows=config.batch_size, devices=devices)

    # 1. Student, teacher, data: all is read before anything is compiled.
    policy, teacher, gold, algorithm, prompts, answered = read(config)
    tokenizer, model, lora = policy.tokenizer, policy.model, config.lora.config()
    loader = make_loader(
        prompts.learned, batch_size=config.batch_size, seed=config.seed, collate=list
    )
    asked = prompts.held_out_batch(config.eval_samples)

    # 2. What is going to run.
    run_key, sampling = jax.random.key(config.seed), algorithm.sampling
    params, frozen = split_params(policy.params, lora, key=run_key)
    show_plan(
        f"Distillation of {config.teacher}, beta {algorithm.beta}, "
        f"{algorithm.on_policy:.0%} on-policy",
        model,
        trained=params,
        frozen=(teacher.params, frozen),
        steps=total,
        rows=config.batch_size * sampling.completions,
        length=config.prompt_length + sampling.max_new_tokens,
        micro_batches=parts,
        devices=devices,
    )

    # 3. The parts of an update: sample, or take the data's; then learn.
    apply_fn, show_rollout = policy_apply(model), ShowRollout()
    taught, frozen = replicate((teacher.params, frozen), devices)
    report = show_rollout.report()
    sample = make_sampler(apply_fn, decode_layout, sampling, frozen, devices, report)
    teacher_fn = policy_apply(teacher.model)
    options: Any = {"teacher_apply_fn": teacher_fn, "config": algorithm, "others": 2}
    update = on_batches(distillation_step, devices, donate_state=True, **options)
    eval_step = on_batches(distillation_eval, devices, apply_fn=apply_fn, **options)
    compare = lambda s, rollout: eval_step(s.params, rollout.batch, taught, frozen)
    asking = sample, compare, asked, jax.random.fold_in(run_key, 0), tokenizer, gold
    evaluate = functools.partial(evaluate_student, *asking)
    state = create_state(apply_fn, params, make_optimizer(config.optim, total))
    held = replicate(state, devices)
    before = evaluate(held)
    state, restored = resume_state(
        config, state, loader, tokenizer, policy=policy, teacher=teacher
    )
    save_model_files(run_dir, model, tokenizer, began=policy, lora=lora)
    state = held if restored is None else replicate(state, devices)
    del policy, teacher, params, held  # their arrays: the devices have copies

    # 4. Training.
    start = restored or 0
    if start == total:
        print(f"{run_dir}: nothing to do ({total}/{total} updates)")
        return report_student(run_dir, before, evaluate(state))
    shown: Any = {"loss": "distillation/loss", "KL": "distillation/kl"}
    with running("Distillation", config, total, loader, restored, **shown) as (
        log,
        saves,
    ):
        show_rollout.on = log.show
        for step in range(start + 1, total + 1):
            coin_key, draw_key = jax.random.split(jax.random.fold_in(run_key, step))
            examples, scores = next(loader), {}
            drawn = bool(jax.random.uniform(coin_key) < algorithm.on_policy)
            if drawn or answered is None:
                rollout = sample(state.params, prompts.collate(examples), draw_key)
                batch, scores = rollout.batch, gold_score(gold, tokenizer, rollout)
            else:
                batch = shard(answered(examples), devices)
            state, metrics = update(state, batch, taught, frozen)
            log.add(step, metrics, tokens=metrics.counts["distillation/loss"])
            log.also(scores | {"distillation/on_policy": float(drawn)})
            log.flush()  # an iteration is long: its numbers are not kept waiting
            if saves.due(step):
                saves.save(step, state)
    finish_run(run_dir)
    return report_student(run_dir, before, evaluate(state))


class Given(NamedTuple):
    """What the script is given."""

    policy: Stage
    teacher: Stage
    gold: RewardFunction | None
    algorithm: DistillationConfig  # with the student's stop tokens and padding
    prompts: Prompts
    answered: Callable[[list[Any]], TokenBatch] | None  # with the data's completions


def read(config: Config) -> Given:
    """Student, teacher, prompts, and their completions if those are learned."""
    policy = load_policy(config.policy, config.pretrained)
    teacher = load_teacher(config.teacher, policy, config.pretrained)
    gold = None if config.gold is None else load_reward_function(config.gold)
    length = config.prompt_length
    where: Any = {"run_dir": config.run_dir, "seed": config.seed}
    algorithm = fit_to_policy(config.distillation, policy, length, config.stop_text)
    if algorithm.on_policy < 1:
        data = read_answered(config.data, policy, prompt_length=length, **where)
        return Given(policy, teacher, gold, algorithm, *data)
    options: Any = where | {"words": config.prompt_words, "lengths": (length,)}
    prompts = read_prompts(config.data, policy.tokenizer, **options)
    return Given(policy, teacher, gold, algorithm, prompts, None)


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
