"""Expert iteration: a policy imitates the best of what it says, round after round.

Dong et al. 2023 (RAFT), arXiv:2304.06767; Gulcehre et al. 2023 (ReST),
arXiv:2308.08998.

  python -m experiments.expert_iteration --policy runs/sft --reward runs/reward

Each round draws n completions a prompt, keeps the best one by its score, and fine-tunes
the policy on those; no gradient goes through the reward. One round's distance from its
start, were it learned exactly, is at most log n − (n−1)/n nats.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import cli
from experiments.aside import finish_run
from experiments.choices import check_unpacked, compare_tokens, make_choices
from experiments.logs import ShowRollout, show_plan
from experiments.networks import make_networks
from experiments.online import OnlineConfig, read
from experiments.referees import load_referees, make_others
from experiments.resuming import resume_state, running, start_run
from experiments.rollouts import make_scorer
from experiments.runs import check_batches, check_micro_batches, on_batches
from experiments.samples import evaluate_policy
from experiments.watching import Watch, report_end
from rlhf_jax.errors import UserError
from rlhf_jax.optim import OptimConfig, make_optimizer
from rlhf_jax.parallel import local_devices, replicate, shard, unshard
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.stages import save_model_files
from rlhf_jax.steps import best_of_n_step, create_state, sample_step, sft_step
from rlhf_jax.types import Metrics


@dataclasses.dataclass(frozen=True)
class ExpertConfig:
    """What a round is."""

    sampling: SamplingConfig = SamplingConfig(max_new_tokens=24, completions=16)
    """How completions are drawn; the best of each prompt's is kept."""
    epochs: int = 2
    """Passes over what a round keeps."""
    rows: int = 32
    """Kept completions an update, all devices together."""
    micro_batches: int = 1
    """Parts of an update's rows on a device, computed one after the other."""


@dataclasses.dataclass(frozen=True)
class Config(OnlineConfig):
    """Expert iteration."""

    run_dir: Path = Path("runs/expert")
    """Where checkpoints, metrics, samples and the report go."""
    expert: ExpertConfig = ExpertConfig()
    """The algorithm."""
    optim: OptimConfig = OptimConfig(learning_rate=1e-3, schedule="constant", eps=1e-5)
    """Optimiser and schedule."""
    episodes: int = 10_240
    """Completions in all."""
    batch_size: int = 1_024
    """Completions a round, all devices together."""
    save_every: int = 1
    """Rounds between checkpoints."""

    def __post_init__(self):
        sampling = self.expert.sampling
        check_batches(sampling, self.episodes, self.batch_size, self.eval_samples)
        check_unpacked(self)
        self.check_watched(kl=True, softens=False)
        kept = self.batch_size // sampling.completions
        if self.expert.epochs < 1 or self.expert.rows < 1 or kept % self.expert.rows:
            raise UserError(
                f"expert.epochs = {self.expert.epochs}, expert.rows = "
                f"{self.expert.rows}: expected 1 or more, and a divisor of the {kept} "
                "completions that a round keeps"
            )


def main(config: Config) -> dict[str, float]:
    """Trains, and returns what samples were like before and after."""
    run_dir = start_run(config)
    devices, parts = local_devices(config.devices), config.expert.micro_batches
    check_micro_batches(parts, rows=config.expert.rows, devices=devices)

    # 1. Earlier stages and prompts: all is read before anything is compiled.
    given = read(config, config.expert)
    policy, reward, gold, expert, loader, asked = given
    referees = load_referees(config, given)
    tokenizer, model, lora = policy.tokenizer, policy.model, config.lora.config()
    run_key = jax.random.key(config.seed)
    nets = make_networks(policy, reward, None, lora, config.cache_dtype, key=run_key)
    best_of = expert.sampling.completions
    total = config.episodes // config.batch_size
    updates = expert.epochs * (config.batch_size // best_of // expert.rows)
    show_plan(
        f"Expert iteration, the best of {best_of}, {total} rounds of "
        f"{config.batch_size:,} completions, reward {config.reward}",
        model,
        trained=nets.params,
        frozen=(policy.params, nets.judge, nets.frozen, referees.params),
        steps=total * updates,
        rows=expert.rows,
        length=config.prompt_length + expert.sampling.max_new_tokens,
        micro_batches=parts,
        devices=devices,
    )

    # 2. The parts of a round: sample, score, keep the best; then imitate them.
    whole = policy.params, nets.judge, nets.frozen
    ref, judge, frozen = replicate(whole, devices)
    judged = reward, judge, config.reward_kind, tokenizer, devices
    score = make_scorer(*judged, **config.calls())
    others = make_others(config, given, referees, devices)
    show_rollout = ShowRollout()
    sample = functools.partial(
        sample_alone,
        apply_fn=nets.sample_fn,
        config=expert.sampling,
        layout=nets.layout,
        report=show_rollout.report(),
    )
    keep = functools.partial(
        keep_best, ref_apply_fn=nets.ref_apply_fn, group_size=best_of
    )
    kept_of = make_choices(sample, keep, score, ref, frozen, devices)
    imitate = on_batches(sft_step, devices, donate_state=True, micro_batches=parts)
    tx = make_optimizer(config.optim, total * updates)
    state = create_state(nets.apply_fn, nets.params, tx)
    key = jax.random.fold_in(run_key, 0)
    asking = compare_tokens(kept_of, nets.ref_apply_fn, ref, devices), asked, key
    evaluate = functools.partial(evaluate_policy, *asking, tokenizer, gold)
    held = replicate(state, devices)
    before = evaluate(held)
    stages = {"policy": policy, "reward": reward, **referees.judges}
    state, restored = resume_state(config, state, loader, tokenizer, **stages)
    save_model_files(run_dir, model, tokenizer, began=policy, lora=lora)
    state = held if restored is None else replicate(state, devices)
    # Their arrays: the devices have copies.
    del given, policy, reward, referees, stages, whole, nets, held

    # 3. Training.
    watch = Watch(run_dir, config, restored, total)
    if watch.nothing_to_do("rounds"):
        return report_end(run_dir, before, evaluate(state), watch)
    shown: dict[str, Any] = {"reward": "objective/score", "KL": "objective/kl"}
    plan = config, total, loader, restored
    with running("rounds", *plan, watch=watch, **shown) as (log, saves):
        show_rollout.on = log.show
        for step in watch.steps():
            key = jax.random.fold_in(run_key, step)
            sampled = kept_of(state, next(loader), key)
            kept, metrics = jax.device_get(unshard(sampled.experience)), sampled.metrics
            order = np.random.default_rng((config.seed, step))
            for rows in minibatches(order, len(kept.tokens), expert):
                part = shard(jax.tree.map(lambda x, r=rows: x[r], kept), devices)
                state, improved = imitate(state, part, frozen)
                metrics += improved
            tokens = sampled.metrics.sums["rollout/response_length"]
            log.add(step, metrics, tokens=tokens, scores=sampled.scores)
            log.also(others(sampled))
            log.flush()  # a round is long: its numbers are not kept waiting
            if saves.due(step):
                saves.save(step, state)
    finish_run(run_dir)
    return report_end(run_dir, before, evaluate(state), watch)


def sample_alone(params, ref_params, *args, **options):
    """`sample_step`: nobody but the policy draws."""
    del ref_params
    return sample_step(params, *args, **options)


def keep_best(*trees, key, **options) -> tuple[Any, Metrics]:
    """`best_of_n_step`: nothing is left to chance."""
    del key
    return best_of_n_step(*trees, **options)


def minibatches(order: np.random.Generator, count: int, expert: ExpertConfig):
    """The rows of every update of a round, each once an epoch."""
    for _ in range(expert.epochs):
        yield from order.permutation(count).reshape(-1, expert.rows)


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
