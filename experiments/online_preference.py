"""A policy from preferences on what it says itself: online DPO, XPO, Nash-MD.

Guo et al. 2024, arXiv:2402.04792; Xie et al. 2024, arXiv:2405.21046; Munos et al. 2023,
arXiv:2312.00886. A reward ranks the two completions of a prompt; docs/algorithms says
where each of them ends.

  python -m experiments.online_preference --policy runs/sft --reward runs/reward
  python -m experiments.online_preference --preset nash_md --run-dir runs/nash_md

Each iteration draws two completions a prompt, one of them from the reference (XPO) or
from a mixture with it (Nash-MD), scores and compares them, and updates the policy once.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax

from experiments import cli
from experiments.aside import finish_run
from experiments.choices import check_unpacked, compare_tokens, make_choices
from experiments.logs import ShowRollout, show_plan
from experiments.networks import Networks, make_networks
from experiments.online import OnlineConfig, read
from experiments.referees import load_referees, make_others
from experiments.resuming import resume_state, running, start_run
from experiments.rollouts import Sampled, make_scorer
from experiments.runs import (
    check_batches,
    check_micro_batches,
    on_batches,
)
from experiments.samples import evaluate_policy
from experiments.watching import Watch, report_end
from rlhf_jax.optim import OptimConfig, make_optimizer
from rlhf_jax.parallel import local_devices, replicate
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.stages import save_model_files
from rlhf_jax.steps import (
    ONLINE_PRESETS,
    OnlinePreferenceConfig,
    create_state,
    online_preference_step,
    pair_experience_step,
    sample_pairs,
)

SAMPLING = SamplingConfig(max_new_tokens=24, completions=2)


@dataclasses.dataclass(frozen=True)
class Config(OnlineConfig):
    """Preference optimisation online."""

    run_dir: Path = Path("runs/online")
    """Where checkpoints, metrics, samples and the report go."""
    online: OnlinePreferenceConfig = ONLINE_PRESETS["online_dpo"](SAMPLING)
    """The algorithm."""
    optim: OptimConfig = OptimConfig(learning_rate=1e-3, schedule="linear", eps=1e-5)
    """Optimiser and schedule."""

    def __post_init__(self):
        sampling = self.online.sampling
        check_batches(sampling, self.episodes, self.batch_size, self.eval_samples)
        check_unpacked(self)
        self.check_watched(kl=True, softens=False)


def main(config: Config) -> dict[str, float]:
    """Trains, and returns what samples were like before and after."""
    run_dir = start_run(config)
    devices, parts = (
        local_devices(config.devices),
        config.online.preference.micro_batches,
    )
    check_micro_batches(parts, rows=config.batch_size // 2, devices=devices)

    # 1. Earlier stages and prompts: all is read before anything is compiled.
    given = read(config, config.online)
    policy, reward, gold, online, loader, asked = given
    referees = load_referees(config, given)
    tokenizer, model, lora = policy.tokenizer, policy.model, config.lora.config()
    run_key = jax.random.key(config.seed)
    nets = make_networks(policy, reward, None, lora, config.cache_dtype, key=run_key)
    total = config.episodes // config.batch_size
    show_plan(
        f"{online.loss} on its own completions (mixture {online.mixture:g}), "
        f"{config.episodes:,} episodes, reward {config.reward}",
        model,
        trained=nets.params,
        frozen=(policy.params, nets.judge, nets.frozen, referees.params),
        steps=total,
        rows=config.batch_size,
        length=config.prompt_length + online.sampling.max_new_tokens,
        micro_batches=parts,
        devices=devices,
    )

    # 2. The parts of an iteration: sample, score, compare; then update.
    # One tree, so that what policy, reference and reward model share is there once.
    whole = policy.params, nets.judge, nets.frozen
    ref, judge, frozen = replicate(whole, devices)
    judged = reward, judge, config.reward_kind, tokenizer, devices
    score = make_scorer(*judged, **config.calls())
    others = make_others(config, given, referees, devices)
    show_rollout = ShowRollout()
    pairs_of = make_pairs(nets, online, score, ref, frozen, devices, show_rollout)
    update = on_batches(
        online_preference_step, devices, donate_state=True, config=online
    )
    tx = make_optimizer(config.optim, total)
    state = create_state(nets.apply_fn, nets.params, tx)
    alone = dataclasses.replace(online, mixture=0.0)  # the policy's own, to be judged
    own_of = make_pairs(nets, alone, score, ref, frozen, devices, show_rollout)
    evaluate = functools.partial(
        evaluate_policy,
        compare_tokens(own_of, nets.ref_apply_fn, ref, devices),
        asked,
        jax.random.fold_in(run_key, 0),
        tokenizer,
        gold,
    )
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
    if watch.nothing_to_do("iterations"):
        return report_end(run_dir, before, evaluate(state), watch)
    shown: dict[str, Any] = {"reward": "objective/score", "KL": "objective/kl"}
    plan = config, total, loader, restored
    with running("online", *plan, watch=watch, **shown) as (log, saves):
        show_rollout.on = log.show
        for step in watch.steps():
            key = jax.random.fold_in(run_key, step)
            sampled = pairs_of(state, next(loader), key)
            state, improved = update(state, sampled.experience, frozen)
            tokens = sampled.metrics.sums["rollout/response_length"]
            found = sampled.metrics + improved
            log.add(step, found, tokens=tokens, scores=sampled.scores)
            log.also(others(sampled))
            log.flush()  # an iteration is long: its numbers are not kept waiting
            if saves.due(step):
                saves.save(step, state)
    finish_run(run_dir)
    return report_end(run_dir, before, evaluate(state), watch)


def make_pairs(
    nets: Networks,
    online: OnlinePreferenceConfig,
    score,
    ref,
    frozen,
    devices,
    show: ShowRollout,
):
    """A function ``(state, prompts, key)`` to what the policy drew, and the pairs."""
    sampled_of = make_choices(
        functools.partial(
            sample_pairs,
            apply_fn=nets.sample_fn,
            config=online,
            layout=nets.layout,
            report=show.report(),
        ),
        functools.partial(
            pair_experience_step, ref_apply_fn=nets.ref_apply_fn, config=online
        ),
        score,
        ref,
        frozen,
        devices,
    )

    def pairs_of(state, prompts, key) -> Sampled:
        sampled = sampled_of(state, prompts, key)
        if online.mixture == 0:
            return sampled
        own = lambda x: x[:, ::2]  # of [devices, rows]
        rollout = jax.tree.map(own, sampled.rollout)
        return sampled._replace(rollout=rollout, scores=own(sampled.scores))

    return pairs_of


if __name__ == "__main__":
    presets = {name: Config(online=of(SAMPLING)) for name, of in ONLINE_PRESETS.items()}
    cli.run(main, presets, description=__doc__ or "")
