"""Supervised fine-tuning: a policy that imitates demonstrations.

Ouyang et al. 2022, arXiv:2203.02155, step 1.

  python -m experiments.sft --run-dir runs/sft
  python -m experiments.sft --run-dir runs/sft --data.path demonstrations.jsonl

  python -m experiments.sft --policy Qwen/Qwen2.5-0.5B-Instruct --lora.rank 16

Rows have prompt and completion, or text alone, or the messages of a conversation, whose
assistant turns are learned. Without --policy a byte-level BPE tokenizer is trained on
them and the policy starts from scratch.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from experiments import cli
from experiments.aside import finish_run
from experiments.beginning import read
from experiments.evaluation import eval_names, held_out_metrics
from experiments.inputs import DEMONSTRATIONS, DataConfig, tokenize_imitation
from experiments.logs import due, show_plan
from experiments.resuming import resume_state, running, start_run
from experiments.runs import (
    PartsConfig,
    check_micro_batches,
    needs_policy,
    on_batches,
    on_devices,
    split_params,
)
from rlhf_jax.data import Conversation
from rlhf_jax.errors import UserError
from rlhf_jax.models import CausalLM, TransformerConfig, init_params, policy_apply
from rlhf_jax.optim import OptimConfig, make_optimizer
from rlhf_jax.parallel import Where, replicate, shard
from rlhf_jax.stages import save_model_files
from rlhf_jax.steps import create_state, sft_eval, sft_step

SMALL = TransformerConfig(
    vocab_size=512,
    d_model=128,
    n_layers=2,
    n_heads=4,
    n_kv_heads=4,
    d_head=32,
    d_ff=384,
    max_length=64,
    scan_unroll=2,
)


@dataclasses.dataclass(frozen=True)
class Config(PartsConfig):
    """Supervised fine-tuning."""

    run_dir: Path = Path("runs/sft")
    """Where checkpoints, metrics and the report go."""
    data: DataConfig = DataConfig("tfds:tiny_reviews/reviews:train")
    """Demonstrations."""
    policy: Path | None = None
    """A policy to start from: run directory, checkpoint of transformers or hub id; none
    starts from scratch."""
    model: TransformerConfig = SMALL
    """The network, without --policy; vocab_size is that of the tokenizer to train."""
    optim: OptimConfig = OptimConfig(learning_rate=3e-3, schedule="cosine", warmup=20)
    """Optimiser and schedule."""
    max_length: int | None = None
    """Most tokens of a demonstration; none takes the network's context."""
    pack_length: int | None = None
    """Tokens of a row that several demonstrations share; none gives each its own."""
    batch_size: int = 64
    """Rows an update, all devices together."""
    micro_batches: int = 1
    """Parts that an update's rows on a device are computed in, one after the other."""
    epochs: int = 2
    """Passes over the demonstrations."""
    eval_every: int = 100
    """Updates between evaluations."""
    stop_loss: float | None = None
    """Stops at the first evaluation with a loss no greater; none runs to the end."""
    log_every: int = 10
    """Updates between lines of metrics."""

    def __post_init__(self):
        needs_policy(self, self.policy)


@on_devices
def main(config: Config, devices: Where) -> dict[str, float]:
    """Trains, and returns the last evaluation."""
    run_dir = start_run(config)
    check_micro_batches(config.micro_batches, rows=config.batch_size, devices=devices)

    # 1. Data: all of it is read and tokenized before anything is compiled.
    policy, tokenizer, model, data = read(
        config,
        DEMONSTRATIONS,
        tokenize_imitation,
        model=config.model,
        spell=functools.partial(spell, config.data),
    )
    loader = data.loader(config.batch_size, seed=config.seed)
    total = config.epochs * (len(data.rows) // config.batch_size)

    # 2. What is going to run.
    lora, key = config.lora.config(), jax.random.key(config.seed)
    init = functools.partial(init_params, CausalLM(model), key=key)
    whole = jax.eval_shape(init) if policy is None else policy.params
    trained, frozen = split_params(whole, lora, key=key)
    show_plan(
        f"Supervised fine-tuning on {len(data.learned.examples):,} demonstrations "
        f"({data.learned.num_cut} cut)",
        model,
        trained=trained,
        frozen=frozen,
        steps=total,
        rows=config.batch_size,
        length=data.length,
        micro_batches=config.micro_batches,
        devices=devices,
    )

    # 3. Training: maximum likelihood of the completions.
    apply_fn = policy_apply(model)
    params = init() if policy is None else trained
    state = create_state(apply_fn, params, make_optimizer(config.optim, total))
    state, restored = resume_state(config, state, loader, tokenizer, policy=policy)
    save_model_files(run_dir, model, tokenizer, began=policy, lora=lora)
    state, frozen = replicate(state, devices), replicate(frozen, devices)
    train_step = on_batches(
        sft_step, devices, donate_state=True, micro_batches=config.micro_batches
    )
    eval_step = on_batches(sft_eval, devices, apply_fn=apply_fn)

    def evaluate() -> dict[str, float]:
        step = lambda batch: eval_step(state.params, shard(batch, devices), frozen)
        return eval_names(held_out_metrics(step, data, config.batch_size))

    low = -math.inf if config.stop_loss is None else config.stop_loss
    start = restored or 0
    if start > 0 and due(start, config.eval_every, total):
        found = evaluate()
        if start == total or found["sft/eval_loss"] <= low:
            print(f"{run_dir}: nothing to do ({start}/{total} updates)")
            return found
    every = config.log_every
    with running("SFT", config, total, loader, restored, every, loss="sft/loss") as (
        log,
        saves,
    ):
        for step in range(start + 1, total + 1):
            state, metrics = train_step(state, shard(next(loader), devices), frozen)
            tokens = config.batch_size * data.length
            log.add(step, metrics, tokens=tokens)
            enough = False
            if log.pending and due(step, config.eval_every, total):
                log.also(found := evaluate())
                enough = found["sft/eval_loss"] <= low
            if enough or saves.due(step):
                log.flush()
                saves.save(step, state)
            if enough:
                print(f"{run_dir}: loss {low} reached ({step}/{total} updates)")
                break
    finish_run(run_dir)
    return evaluate()


def spell(config: DataConfig, texts: list[Any]) -> Iterable[str]:
    """What a new tokenizer is trained on."""
    if isinstance(texts[0], Conversation):
        raise UserError(
            f"--data.path {config.path}: conversations need a tokenizer with a "
            "chat template: give --policy, or columns of plain text"
        )
    return (e.prompt + e.completion for e in texts)


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "", several=True)
