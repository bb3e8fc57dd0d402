"""PPO from human feedback: a policy that scores well and stays close to where it began.

Ziegler et al. 2019, arXiv:1909.08593; Stiennon et al. 2020, arXiv:2009.01325; Ouyang et
al. 2022, arXiv:2203.02155, step 3.

  python -m experiments.ppo --policy runs/sft --reward runs/reward --run-dir runs/ppo
  python -m experiments.ppo --reward my_module:my_function --critic head

Each iteration samples a batch of episodes, scores them, compares them with the
reference policy (KL), looks ahead (GAE) and updates policy and critic. A reward
function is called as f(prompts=[...], completions=[...]) and returns one number each.
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, Literal

import jax

from experiments import cli
from experiments.inputs import DataConfig, parse_prompts, read_data, tokenize_asked
from experiments.rollouts import (
    LABELS,
    Evaluation,
    decode,
    evaluate_policy,
    load_reward,
    make_experience,
    make_networks,
    make_scorer,
    stop_ids,
)
from experiments.runs import (
    RunConfig,
    ShowRollout,
    TokenMeter,
    check_micro_batches,
    count_params,
    resume_state,
    save_state,
    show_plan,
)
from experiments.stages import Stage, load_stage, pad_id, save_model_files
from rlhf_jax.data import collate_prompts, make_loader
from rlhf_jax.errors import UserError
from rlhf_jax.models import CacheDType
from rlhf_jax.optim import OptimConfig, make_optimizer
from rlhf_jax.parallel import (
    data_parallel,
    local_devices,
    replicate,
    unshard,
)
from rlhf_jax.report import write_report
from rlhf_jax.rewards import ScoreKind, call_reward_function, load_reward_function
from rlhf_jax.rundir import create_run_dir, save_json
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.steps import (
    PPO_PRESETS,
    KLConfig,
    PPOConfig,
    create_policy_state,
    policy_step,
)
from rlhf_jax.terminal import print_table, progress, samples_table
from rlhf_jax.tracking import MetricsLogger


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """PPO from human feedback."""

    run_dir: Path = Path("runs/ppo")
    """Where checkpoints, metrics, samples and the report go."""
    policy: Path = Path("runs/sft")
    """The policy to start from, which stays the reference: run directory, checkpoint of
    transformers or hub id."""
    reward: str = "runs/reward"
    """A reward model: run directory or checkpoint of transformers; or a function of
    texts, module:function."""
    reward_kind: ScoreKind = "score"
    """What of a reward model is the reward; logit or probability for binary ones."""
    gold: str | None = None
    """The truth, as module:function, where it is known: logged, never trained on."""
    data: DataConfig = DataConfig("tfds:tiny_reviews/prompts:train")
    """Prompts."""
    prompt_words: int | None = None
    """Takes this many first words of a text column; none reads a prompt column."""
    prompt_length: int = 12
    """Tokens of a prompt at most."""
    ppo: PPOConfig = PPOConfig(
        sampling=SamplingConfig(max_new_tokens=24), kl=KLConfig(coef=0.1)
    )
    """The algorithm."""
    stop_text: str | None = None
    """Tokens of this text end a response, too, besides the end token."""
    prompt_buckets: tuple[int, ...] = ()
    """Widths below prompt_length; a batch gets the least that holds its prompts."""
    cache_dtype: CacheDType | None = None
    """Of keys and values while sampling; none for that of the activations."""
    critic: Literal["reward", "head"] = "reward"
    """A network of its own from the reward model, or a head on the policy's trunk."""
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

    def __post_init__(self):
        if self.episodes < self.batch_size:
            raise UserError(
                f"episodes = {self.episodes}: expected at least one batch of "
                f"batch_size = {self.batch_size}"
            )
        for name in ("batch_size", "eval_samples"):
            if getattr(self, name) % self.ppo.sampling.completions:
                raise UserError(
                    f"{name} = {getattr(self, name)}: expected a multiple of "
                    f"ppo.sampling.completions = {self.ppo.sampling.completions}"
                )


def main(config: Config) -> dict[str, float]:
    """Trains, and returns what samples were like before and after."""
    run_dir = create_run_dir(config.run_dir, config, resume=config.resume)
    devices = local_devices(config.devices)
    check_micro_batches(
        config.ppo.micro_batches,
        rows=config.batch_size // config.ppo.minibatches,
        devices=devices,
    )

    # 1. Earlier stages and prompts.
    policy = load_stage(
        config.policy, "policy", option="--policy", pretrained=config.pretrained
    ).merged()
    tokenizer, lora = policy.tokenizer, config.lora.config()
    reward = load_reward(config.reward, config.reward_kind, policy, config.pretrained)
    gold = None if config.gold is None else load_reward_function(config.gold)
    ppo = with_tokens(config, policy)
    check_lengths(config, policy.model.max_length)
    examples, eval_examples = read_prompts(config, tokenizer)
    collate = functools.partial(
        collate_prompts,
        length=(*config.prompt_buckets, config.prompt_length),
        pad_id=pad_id(tokenizer),
    )
    completions = ppo.sampling.completions
    loader = make_loader(
        examples,
        batch_size=config.batch_size // completions,
        seed=config.seed,
        collate=collate,
    )
    total = config.episodes // config.batch_size
    run_key = jax.random.key(config.seed)
    nets = make_networks(
        policy,
        reward,
        config.critic,
        adapters=lora,
        cache_dtype=config.cache_dtype,
        key=run_key,
    )
    judge = reward.whole() if isinstance(reward, Stage) else {}
    show_plan(
        f"PPO, {config.episodes:,} episodes, reward {config.reward}",
        policy.model,
        trained=count_params(nets.params),
        frozen=count_params(policy.params, judge, nets.frozen),
        steps=total * ppo.epochs * ppo.minibatches,
        rows=config.batch_size // ppo.minibatches,
        length=config.prompt_length + ppo.sampling.max_new_tokens,
        micro_batches=ppo.micro_batches,
        devices=devices,
    )

    # 2. The parts of an iteration: sample, score, compare and look ahead; then update.
    # One tree, so that what policy, reference and reward model share is there once.
    ref_params, judge, frozen = replicate((policy.params, judge, nets.frozen), devices)
    score = make_scorer(reward, judge, config.reward_kind, tokenizer, devices)
    show_rollout = ShowRollout()
    experience_of = make_experience(
        nets, ppo, score, ref_params, frozen, devices, report=show_rollout.report()
    )
    update = functools.partial(policy_step, config=ppo)
    update = data_parallel(
        update, devices, in_axes=(None, 0, None), out_axes=None, donate_state=True
    )
    tx = make_optimizer(config.optim, total * ppo.epochs * ppo.minibatches)
    state = create_policy_state(nets.apply_fn, nets.params, tx, kl_coef=ppo.kl.coef)
    count = config.eval_samples // completions
    asked = [eval_examples[i % len(eval_examples)] for i in range(count)]
    evaluate = functools.partial(
        evaluate_policy,
        experience_of,
        prompts=collate(asked),
        key=jax.random.fold_in(run_key, 0),
        tokenizer=tokenizer,
        gold=gold,
    )

    held = replicate(state, devices)
    before = evaluate(held)
    state, restored = resume_state(run_dir, state, loader)
    save_model_files(
        run_dir,
        policy.model,
        tokenizer,
        began=policy,
        lora=lora,
        params_path=nets.params_path,
    )
    state = held if restored is None else replicate(state, devices)
    del policy, reward, nets, held  # their arrays: the devices have copies

    # 3. Training.
    start = restored or 0
    if start == total:
        print(f"{run_dir}: nothing to do ({total}/{total} iterations)")
        return finish(config, before, evaluate(state))
    with (
        MetricsLogger(run_dir, config.tracking, restored_step=restored) as logger,
        progress("PPO", total, done=start) as advance,
    ):
        meter, show_rollout.on = TokenMeter(), advance
        for step in range(start + 1, total + 1):
            sample_key, update_key = jax.random.split(jax.random.fold_in(run_key, step))
            rollout, _, experience, objective = experience_of(
                state, next(loader), sample_key
            )
            state, improvement = update(state, experience, frozen, key=update_key)
            shown = (objective + improvement).compute()
            if gold is not None:
                texts = decode(tokenizer, unshard(rollout))
                shown["objective/gold"] = call_reward_function(gold, *texts).mean()
            meter.add(int(shown["rollout/response_length"] * config.batch_size))
            logger.log(step, shown, timings={"tokens_per_s": meter.rate()})
            if step % config.save_every == 0 or step == total:
                save_state(run_dir, step, state, loader)
            reward_kl = {"reward": "objective/score", "KL": "objective/kl"}
            numbers = {name: shown[metric] for name, metric in reward_kl.items()}
            advance(numbers | {"tok/s": meter.last})
    write_report(run_dir)
    return finish(config, before, evaluate(state))


def with_tokens(config: Config, policy: Stage) -> PPOConfig:
    """The algorithm with the policy's stop tokens and padding."""
    sampling = dataclasses.replace(
        config.ppo.sampling,
        stop_ids=config.ppo.sampling.stop_ids or stop_ids(policy, config.stop_text),
        pad_id=pad_id(policy.tokenizer),
    )
    return dataclasses.replace(config.ppo, sampling=sampling)


def check_lengths(config: Config, max_length: int) -> None:
    """Prompt and response fit the network's context."""
    budget = config.ppo.sampling.max_new_tokens
    if config.prompt_length + budget > max_length:
        raise UserError(
            f"prompt_length = {config.prompt_length} and ppo.sampling.max_new_tokens = "
            f"{budget} exceed the policy's context of {max_length} tokens; shorten one"
        )


def read_prompts(config: Config, tokenizer) -> tuple[list[Any], list[Any]]:
    """(training, held-out) prompts as token ids."""
    parse = functools.partial(parse_prompts, prompt_words=config.prompt_words)
    tokenize = functools.partial(
        tokenize_asked,
        tokenizer=tokenizer,
        max_prompt_length=config.prompt_length,
        too_long=config.data.too_long,
    )
    train, held_out = read_data(config.data, parse, seed=config.seed)
    return tokenize(train), tokenize(held_out)


def finish(config: Config, before: Evaluation, after: Evaluation) -> dict[str, float]:
    """Shows samples and numbers before and after; keeps them in the run directory."""
    shown = slice(0, 10)
    samples_table(
        before.prompts[shown],
        before.completions[shown],
        after.completions[shown],
        scores_before=before.scores[shown].tolist(),
        scores_after=after.scores[shown].tolist(),
    )
    numbers = zip(before.summary().items(), after.summary().values(), strict=True)
    print_table(
        f"{config.eval_samples} samples on held-out prompts",
        ["", "before", "after"],
        [[LABELS[name], then, now] for (name, then), now in numbers],
    )
    with (config.run_dir / "samples.jsonl").open("w", encoding="utf-8") as file:
        for i, prompt in enumerate(before.prompts):
            row = {"prompt": prompt, "before": before.row(i), "after": after.row(i)}
            file.write(json.dumps(row) + "\n")
    summary = {f"before/{k}": v for k, v in before.summary().items()}
    summary |= {f"after/{k}": v for k, v in after.summary().items()}
    save_json(config.run_dir / "summary.json", summary)
    return summary


def preset(name: str) -> Config:
    """A paper's numbers; the data is still the default."""
    numbers = PPO_PRESETS[name]
    return Config(
        ppo=numbers.ppo,
        optim=numbers.optim,
        episodes=numbers.episodes,
        batch_size=numbers.batch_size,
        prompt_length=numbers.prompt_length,
        critic=numbers.critic,
        stop_text=numbers.stop_text,
    )


if __name__ == "__main__":
    presets = {"default": Config()} | {name: preset(name) for name in PPO_PRESETS}
    cli.run(main, presets, description=__doc__ or "")
