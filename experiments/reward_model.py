"""A reward model r(x, y) from what people prefer.

Pairs (Bradley–Terry; Stiennon et al. 2020, arXiv:2009.01325), rankings of K completions
(Plackett–Luce), a choice among K (Ziegler et al. 2019, arXiv:1909.08593), or good/bad
labels (a two-logit classifier); of all annotators together, or each with a taste.

  python -m experiments.reward_model --policy runs/sft --run-dir runs/reward
  python -m experiments.reward_model --kind binary --data.path labels.jsonl
  python -m experiments.reward_model --kind personal --data.path pairs.jsonl

Rows of pairs have prompt, chosen, rejected (or two whole dialogues as chosen and
rejected), or prompt, completions, ranks; rankings and choices have the latter; labels
have text (or prompt and completion) and label, 1 = good. Pairs and labels may be lists
of messages, for the chat template of --policy. Without --policy a tokenizer is trained
on the rows and the network starts from scratch.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from experiments import cli
from experiments.aside import finish_run
from experiments.calibrating import (
    make_held_out_differences,
    write_held_out_calibration,
)
from experiments.evaluation import eval_names, held_out_metrics, report_accuracy
from experiments.inputs import DataConfig
from experiments.judgements import JUDGEMENTS, Kind, read_judgements
from experiments.logs import due, show_plan
from experiments.networks import reward_params
from experiments.normalizing import normalize_reward, sample_policy
from experiments.resuming import resume_state, running, start_run
from experiments.runs import (
    PartsConfig,
    check_micro_batches,
    needs_policy,
    on_batches,
    on_devices,
    split_params,
)
from experiments.sft import SMALL
from experiments.users import UserOptions, begin_users
from rlhf_jax.errors import UserError
from rlhf_jax.models import ScoreModel, TransformerConfig, score_apply
from rlhf_jax.optim import OptimConfig, make_optimizer
from rlhf_jax.parallel import Where, replicate, shard
from rlhf_jax.stages import save_model_files
from rlhf_jax.steps import REWARD_PRESETS, create_state, reward_eval, reward_step
from rlhf_jax.types import Metrics


@dataclasses.dataclass(frozen=True)
class Config(PartsConfig):
    """Reward modelling."""

    run_dir: Path = Path("runs/reward")
    """Where checkpoints, metrics and the report go."""
    data: DataConfig = DataConfig("tfds:tiny_reviews/rankings:train")
    """Judgements."""
    kind: Kind = "ranking"
    """Pairs, rankings of K, a choice among K, good/bad labels; pairs, user by user."""
    users: UserOptions = UserOptions()
    """With --kind personal."""
    policy: Path | None = None
    """A policy to start from: run directory, checkpoint of transformers or hub id; none
    starts from scratch."""
    model: TransformerConfig = SMALL
    """The network, without --policy; vocab_size is that of the tokenizer to train."""
    optim: OptimConfig = OptimConfig(learning_rate=2e-3, schedule="cosine", warmup=20)
    """Optimiser and schedule."""
    max_length: int | None = None
    """Most tokens of prompt and completion; none takes the network's context."""
    pack_length: int | None = None
    """Tokens of a row that several pairs share; none gives each its own."""
    batch_size: int = 32
    """Judgements an update, or rows of pairs, all devices together."""
    micro_batches: int = 1
    """Parts that an update's rows on a device are computed in, one after the other."""
    epochs: int = 3
    """Passes over the judgements."""
    normalize: bool = False
    """Mean 0 and std 1 on samples of --policy, before and after training."""
    normalize_samples: int = 256
    """How many samples."""
    eval_every: int = 50
    """Updates between evaluations."""
    log_every: int = 10
    """Updates between lines of metrics."""

    def __post_init__(self):
        needs_policy(self, self.policy)
        if self.normalize and self.policy is None:
            raise UserError(
                "--normalize needs samples of a policy: give --policy, or leave it out"
            )


@on_devices
def main(config: Config, devices: Where) -> dict[str, float]:
    """Trains, and returns the evaluation at the end."""
    run_dir = start_run(config)
    check_micro_batches(config.micro_batches, rows=config.batch_size, devices=devices)
    judgement, lora = JUDGEMENTS[config.kind], config.lora.config()
    title = f"Reward model, {config.kind}"

    # 1. Data: all of it is read and tokenized before anything is compiled.
    policy, tokenizer, model, data = read_judgements(config, judgement, config.model)
    examples, num_cut = data.learned.examples, data.learned.num_cut
    total = config.epochs * (len(data.rows) // config.batch_size)
    rows = len(judgement.completions(examples[0])) * config.batch_size
    key, users = jax.random.key(config.seed), {}
    if config.kind == "personal":
        learnt = config.users, judgement, data, run_dir
        judgement, data, users = begin_users(*learnt, key=key)
    loader = data.loader(config.batch_size, seed=config.seed)

    # 2. What is going to run.
    outputs = judgement.num_outputs
    whole = reward_params(ScoreModel(model, outputs), policy, key=key) | users
    params, frozen = split_params(whole, lora, key=key)
    show_plan(
        f"{title}, on {len(examples):,} judgements ({num_cut} cut)",
        model,
        trained=params,
        frozen=frozen,
        steps=total,
        rows=rows,
        length=data.length,
        micro_batches=config.micro_batches,
        devices=devices,
    )

    # 3. Training, between two normalisations if asked for.
    score_fn = score_apply(model, num_outputs=outputs)
    state = create_state(score_fn, params, make_optimizer(config.optim, total))
    state, restored = resume_state(config, state, loader, tokenizer, policy=policy)
    files = run_dir, model, tokenizer
    save_model_files(
        *files, began=policy, lora=lora, num_outputs=outputs, personal=bool(users)
    )

    def normalize(state: Any) -> Any:
        asked: Any = {"count": config.normalize_samples, "seed": config.seed}
        drawn = sample_policy(policy, examples, data.own_length, devices, **asked)
        return normalize_reward(state, held, drawn, devices)

    state, held = replicate(state, devices), replicate(frozen, devices)
    if config.normalize and restored is None:
        state = normalize(state)
    terms, parts = judgement.terms, config.micro_batches
    train_step = on_batches(
        reward_step, devices, donate_state=True, terms_fn=terms, micro_batches=parts
    )
    eval_step = on_batches(reward_eval, devices, score_fn=score_fn, terms_fn=terms)

    def evaluate() -> Metrics:
        step = lambda batch: eval_step(state.params, shard(batch, devices), held)
        return held_out_metrics(step, data, config.batch_size)

    start = restored or 0
    if start == total:
        print(f"{run_dir}: nothing to do ({total}/{total} updates)")
        return report_accuracy(title, run_dir, evaluate())
    every, loss = config.log_every, "reward/loss"
    with running("Reward", config, total, loader, restored, every, loss=loss) as (
        log,
        saves,
    ):
        for step in range(start + 1, total + 1):
            state, metrics = train_step(state, shard(next(loader), devices), held)
            log.add(step, metrics, tokens=rows * data.length)
            if step == total and config.normalize:
                state = normalize(state)
            if log.pending and due(step, config.eval_every, total):
                log.also(eval_names(evaluate()))
            if saves.due(step):
                log.flush()
                saves.save(step, state)
    finish_run(run_dir)
    apart = make_held_out_differences(score_fn, state.params, held, devices)
    write_held_out_calibration(run_dir, apart, data, config.batch_size)
    return report_accuracy(title, run_dir, evaluate())


if __name__ == "__main__":
    presets = {"default": Config()} | {
        name: Config(policy=Path("runs/sft"), **vars(numbers))
        for name, numbers in REWARD_PRESETS.items()
    }
    cli.run(main, presets, description=__doc__ or "", several=True)
