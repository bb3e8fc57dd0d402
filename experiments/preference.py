"""A policy from what people prefer, without a reward model: DPO, KTO and their kin.

Rafailov et al. 2023, arXiv:2305.18290; `docs/algorithms` has all losses.

  python -m experiments.preference --policy runs/sft --run-dir runs/preference
  python -m experiments.preference --preference.kind ipo --data.path pairs.jsonl
  python -m experiments.preference --preset unpaired --preference.kind kto

Rows are those of `experiments.reward_model --kind pairwise`: prompt, chosen, rejected
(or two whole dialogues as chosen and rejected), or prompt, completions, ranks; with
--preset unpaired those of --kind binary: prompt, completion, label, or rankings. The
policy that training starts from is the reference; its log-probs are computed within
each update. With --ref-sync-every it follows the policy (TR-DPO, arXiv:2404.09656).
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import tyro

from experiments import cli
from experiments.aside import finish_run
from experiments.evaluation import (
    eval_names,
    held_out_metrics,
    preference_eval,
    report_accuracy,
)
from experiments.inputs import DataConfig
from experiments.judgements import JUDGEMENTS, Judgement, read_judgements
from experiments.logs import due, show_plan
from experiments.resuming import resume_state, running, start_run
from experiments.runs import (
    PartsConfig,
    check_micro_batches,
    on_batches,
    on_devices,
    split_params,
)
from rlhf_jax.errors import UserError
from rlhf_jax.models import policy_apply
from rlhf_jax.optim import OptimConfig, make_optimizer
from rlhf_jax.parallel import Where, replicate, shard
from rlhf_jax.stages import save_model_files
from rlhf_jax.steps import (
    PreferenceConfig,
    UnpairedConfig,
    create_state,
    create_unpaired_state,
    followed_state,
    following_step,
    preference_step,
    unpaired_step,
)
from rlhf_jax.steps.preference import REFERENCE_FREE
from rlhf_jax.types import Metrics

Algorithm = tyro.conf.AvoidSubcommands[PreferenceConfig | UnpairedConfig]


@dataclasses.dataclass(frozen=True)
class Config(PartsConfig):
    """Preference optimisation."""

    run_dir: Path = Path("runs/preference")
    """Where checkpoints, metrics and the report go."""
    data: DataConfig = DataConfig("tfds:tiny_reviews/rankings:train")
    """Pairs or labels; or rankings: all their pairs, or the better half as good."""
    policy: Path = Path("runs/sft")
    """The policy to start from, which is the reference: run directory, checkpoint of
    transformers or hub id."""
    preference: Algorithm = PreferenceConfig()
    """The algorithm."""
    ref_sync_every: int | None = None
    """Updates after which the reference follows the policy; none leaves it as it is."""
    ref_mixup_alpha: float = 1.0
    """α of reference ← α policy + (1 − α) reference; 1 is a copy."""
    optim: OptimConfig = OptimConfig(learning_rate=3e-4, schedule="cosine", warmup=20)
    """Optimiser and schedule."""
    max_length: int | None = None
    """Most tokens of prompt and completion; none takes the policy's context."""
    pack_length: int | None = None
    """Tokens of a row that several pairs share; none gives each its own."""
    batch_size: int = 64
    """Pairs or completions an update, or rows of pairs, all devices together."""
    epochs: int = 1
    """Passes over the data."""
    eval_every: int = 50
    """Updates between evaluations."""
    log_every: int = 10
    """Updates between lines of metrics."""

    def __post_init__(self):
        every, alpha = self.ref_sync_every, self.ref_mixup_alpha
        free = self.preference.kind in REFERENCE_FREE
        if every is not None and (free or every < 1):
            raise UserError(
                f"ref_sync_every = {every}: expected 1 or more, and a loss with a "
                f"reference; {self.preference.kind} has {'none' if free else 'one'}"
            )
        if not 0 < alpha <= 1 or (every is None and alpha != 1):
            wanted = "more than 0, at most 1, and ref_sync_every with it"
            raise UserError(f"ref_mixup_alpha = {alpha}: expected {wanted}")


@on_devices
def main(config: Config, devices: Where) -> dict[str, float]:
    """Trains, and returns the evaluation at the end."""
    run_dir, parts = start_run(config), config.preference.micro_batches
    check_micro_batches(parts, rows=config.batch_size, devices=devices)
    title, lora = f"Preferences, {config.preference.kind}", config.lora.config()
    judgement, update, create = algorithm(config)

    # 1. Data: all of it is read and tokenized before anything is compiled.
    policy, tokenizer, model, data = read_judgements(config, judgement)
    assert policy is not None  # there is no way to name none
    examples = data.learned.examples
    loader = data.loader(config.batch_size, seed=config.seed)
    total = config.epochs * (len(data.rows) // config.batch_size)
    rows = len(judgement.completions(examples[0])) * config.batch_size

    # 2. What is going to run.
    key = jax.random.key(config.seed)
    params, frozen = split_params(policy.params, lora, key=key)
    show_plan(
        f"{title}, on {len(examples):,} judgements ({data.learned.num_cut} cut)",
        model,
        trained=params,
        frozen=(policy.params, frozen),
        steps=total,
        rows=rows,
        length=data.length,
        micro_batches=parts,
        devices=devices,
    )

    # 3. Training: the policy away from its reference, as far as the judgements go.
    apply_fn = policy_apply(model)
    state = create(apply_fn, params, make_optimizer(config.optim, total))
    others, path = (policy.params, frozen), "params"
    if config.preference.kind in REFERENCE_FREE:
        others = (None, frozen)
    elif config.ref_sync_every is not None:  # the reference is part of the state
        state, others, path = followed_state(state), (frozen,), "state/params"
    state, restored = resume_state(config, state, loader, tokenizer, policy=policy)
    save_model_files(
        run_dir, model, tokenizer, began=policy, lora=lora, params_path=path
    )
    # One tree, so that what policy and reference share is there once.
    others, state = replicate(others, devices), replicate(state, devices)
    del policy, params, frozen  # their arrays: the devices have copies
    options: Any = {"ref_apply_fn": apply_fn, "config": config.preference}
    options |= {"devices": devices, "others": len(others)}
    mapped = functools.partial(on_batches, **options)
    train_step = mapped(update, donate_state=True)
    eval_step = mapped(functools.partial(preference_eval, update))

    def evaluate() -> Metrics:
        step = lambda batch: eval_step(state, shard(batch, devices), *others)
        return held_out_metrics(step, data, config.batch_size)

    start = restored or 0
    if start == total:
        print(f"{run_dir}: nothing to do ({total}/{total} updates)")
        return report_accuracy(title, run_dir, evaluate())
    logged: Any = {"every": config.log_every, "loss": "preference/loss"}
    with running("Preference", config, total, loader, restored, **logged) as both:
        log, saves = both
        for step in range(start + 1, total + 1):
            state, metrics = train_step(state, shard(next(loader), devices), *others)
            log.add(step, metrics, tokens=rows * data.length)
            if log.pending and due(step, config.eval_every, total):
                log.also(eval_names(evaluate()))
            if saves.due(step):
                log.flush()
                saves.save(step, state)
    finish_run(run_dir)
    return report_accuracy(title, run_dir, evaluate())


def algorithm(config: Config) -> tuple[Judgement, Callable, Callable]:
    """What it learns from, its step, and what makes the step's state."""
    judgement, step, create = JUDGEMENTS["pairwise"], preference_step, create_state
    if isinstance(config.preference, UnpairedConfig):
        judgement = JUDGEMENTS["binary"]
        step, create = unpaired_step, create_unpaired_state
    if config.ref_sync_every is not None:
        every, alpha = config.ref_sync_every, config.ref_mixup_alpha
        step = functools.partial(following_step, step=step, every=every, alpha=alpha)
    return judgement, step, create


if __name__ == "__main__":
    presets = {"default": Config(), "unpaired": Config(preference=UnpairedConfig())}
    cli.run(main, presets, description=__doc__ or "", several=True)
