"""A reward model r(x, y) from what people prefer.

Pairs (Bradley–Terry; Stiennon et al. 2020, arXiv:2009.01325), rankings of K completions
(Plackett–Luce), a choice among K (Ziegler et al. 2019, arXiv:1909.08593), or good/bad
labels (a two-logit classifier).

  python -m experiments.reward_model --policy runs/sft --run-dir runs/reward
  python -m experiments.reward_model --kind binary --data.path labels.jsonl

Rows of pairs have prompt, chosen, rejected (or two whole dialogues as chosen and
rejected), or prompt, completions, ranks; rankings and choices have the latter; labels
have text (or prompt and completion) and label, 1 = good. Without --policy a tokenizer
is trained on the rows and the network starts from scratch.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
from scipy.stats import binomtest

from experiments import cli
from experiments.inputs import DataConfig, read_data
from experiments.judgements import JUDGEMENTS, Kind
from experiments.runs import (
    RunConfig,
    TokenMeter,
    check_micro_batches,
    count_params,
    needs_policy,
    resume_state,
    save_state,
    show_plan,
    split_params,
)
from experiments.sft import SMALL
from experiments.stages import Stage, load_policy, pad_id, save_model_files
from rlhf_jax.data import batches, left_padded, make_loader, train_tokenizer
from rlhf_jax.errors import UserError
from rlhf_jax.models import (
    ScoreModel,
    TransformerConfig,
    init_head,
    init_params,
    policy_apply,
    score_apply,
    score_params_from_policy,
)
from rlhf_jax.optim import OptimConfig, make_optimizer
from rlhf_jax.parallel import (
    data_parallel,
    local_devices,
    replicate,
    shard,
)
from rlhf_jax.report import write_report
from rlhf_jax.rewards import normalize_scores, sequence_scores
from rlhf_jax.rundir import create_run_dir, save_json
from rlhf_jax.sampling import SamplingConfig, generate
from rlhf_jax.steps import REWARD_PRESETS, create_state, reward_eval, reward_step
from rlhf_jax.terminal import print_table, progress
from rlhf_jax.tracking import MetricsLogger
from rlhf_jax.types import Array, Metrics, Params, join_params


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """Reward modelling."""

    run_dir: Path = Path("runs/reward")
    """Where checkpoints, metrics and the report go."""
    data: DataConfig = DataConfig("tfds:tiny_reviews/rankings:train")
    """Judgements."""
    kind: Kind = "ranking"
    """Pairs, rankings of K, a choice among K, or good/bad labels."""
    policy: Path | None = None
    """A policy to start from: run directory, checkpoint of transformers or hub id; none
    starts from scratch."""
    model: TransformerConfig = SMALL
    """The network, without --policy; vocab_size is that of the tokenizer to train."""
    optim: OptimConfig = OptimConfig(learning_rate=2e-3, schedule="cosine", warmup=20)
    """Optimiser and schedule."""
    max_length: int | None = None
    """Most tokens of prompt and completion; none takes the network's context."""
    batch_size: int = 32
    """Judgements an update, all devices together."""
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


def main(config: Config) -> dict[str, float]:
    """Trains, and returns the evaluation at the end."""
    run_dir = create_run_dir(config.run_dir, config, resume=config.resume)
    devices = local_devices(config.devices)
    check_micro_batches(config.micro_batches, rows=config.batch_size, devices=devices)
    judgement, lora = JUDGEMENTS[config.kind], config.lora.config()

    # 1. Data: all of it is read and tokenized before anything is compiled.
    texts, eval_texts = read_data(config.data, judgement.parse, seed=config.seed)
    policy = load_policy(config.policy, config.pretrained)
    tokenizer, model = start_from(config, policy, texts)
    tokenize = functools.partial(
        judgement.tokenize,
        tokenizer=tokenizer,
        max_length=min(config.max_length or model.max_length, model.max_length),
        too_long=config.data.too_long,
    )
    (examples, num_cut), (eval_examples, _) = tokenize(texts), tokenize(eval_texts)
    length = max(
        len(e.prompt) + max(map(len, judgement.completions(e)))
        for e in examples + eval_examples
    )
    collate = functools.partial(
        judgement.collate, length=length, pad_id=pad_id(tokenizer)
    )
    loader = make_loader(
        examples, batch_size=config.batch_size, seed=config.seed, collate=collate
    )
    total = config.epochs * (len(examples) // config.batch_size)
    rows = len(judgement.completions(examples[0])) * config.batch_size

    # 2. What is going to run.
    network = ScoreModel(model, judgement.num_outputs)
    key = jax.random.key(config.seed)
    whole = start_params(network, policy, key=key)
    params, frozen = split_params(whole, lora, key=key)
    show_plan(
        f"Reward model, {config.kind}, on {len(examples):,} judgements ({num_cut} cut)",
        model,
        trained=count_params(params),
        frozen=count_params(frozen),
        steps=total,
        rows=rows,
        length=length,
        micro_batches=config.micro_batches,
        devices=devices,
    )

    # 3. Training, between two normalisations if asked for.
    score_fn = score_apply(model, num_outputs=judgement.num_outputs)
    state = create_state(score_fn, params, make_optimizer(config.optim, total))
    state, restored = resume_state(run_dir, state, loader)
    save_model_files(
        run_dir,
        model,
        tokenizer,
        began=policy,
        lora=lora,
        num_outputs=judgement.num_outputs,
    )

    def normalize(state):
        samples = sample_policy(config, policy, examples, length)
        scores = jax.jit(sequence_scores, static_argnums=0)(
            score_fn, join_params(frozen, state.params), samples
        )
        return state.replace(params=normalize_scores(state.params, scores[:, 0]))

    if config.normalize and restored is None:
        state = normalize(state)
    state, held = replicate(state, devices), replicate(frozen, devices)
    train_step = data_parallel(
        functools.partial(
            reward_step,
            terms_fn=judgement.terms,
            micro_batches=config.micro_batches,
        ),
        devices,
        in_axes=(None, 0, None),
        out_axes=None,
        donate_state=True,
    )
    eval_step = data_parallel(
        functools.partial(reward_eval, score_fn=score_fn, terms_fn=judgement.terms),
        devices,
        in_axes=(None, 0, None),
        out_axes=None,
    )

    def evaluate() -> Metrics:
        metrics = Metrics.of({})
        for batch, real in batches(eval_examples, config.batch_size, collate):
            batch = judgement.keep(batch, real)
            batch = shard(batch, devices)
            metrics += eval_step(state.params, batch, held)
        return metrics

    start = restored or 0
    if start == total:
        print(f"{run_dir}: nothing to do ({total}/{total} updates)")
        return report_accuracy(config, evaluate())
    with (
        MetricsLogger(run_dir, config.tracking, restored_step=restored) as logger,
        progress("Reward model", total, done=start) as advance,
    ):
        meter = TokenMeter()
        shown: dict[str, Any] = {}
        for step in range(start + 1, total + 1):
            state, metrics = train_step(state, shard(next(loader), devices), held)
            meter.add(rows * length)
            if step == total and config.normalize:
                state = replicate(normalize(state), devices)
            if step % config.log_every == 0 or step == total:
                shown = metrics.compute()
                if step % config.eval_every == 0 or step == total:
                    shown |= eval_names(evaluate())
                logger.log(step, shown, timings={"tokens_per_s": meter.rate()})
            if step % config.save_every == 0 or step == total:
                save_state(run_dir, step, state, loader)
            advance(
                {"loss": shown.get("reward/loss", float("nan")), "tok/s": meter.last}
            )
    write_report(run_dir)
    return report_accuracy(config, evaluate())


def start_from(config: Config, policy: Stage | None, texts: list[Any]):
    """(tokenizer, model): the policy's, or new ones."""
    if policy is not None:
        return policy.tokenizer, policy.model
    completions = JUDGEMENTS[config.kind].completions
    tokenizer = train_tokenizer(
        (e.prompt + text for e in texts for text in completions(e)),
        config.model.vocab_size,
    )
    return tokenizer, dataclasses.replace(config.model, vocab_size=len(tokenizer))


def start_params(network: ScoreModel, policy: Stage | None, *, key: Array) -> Params:
    """New parameters, on the policy's trunk where there is one."""
    if policy is None:
        return init_params(network, key=key)
    shapes = jax.eval_shape(functools.partial(init_params, network), key=key)
    head = {"score_head": init_head(network, "score_head", key=key)}
    return score_params_from_policy(policy.params, shapes | head)


def sample_policy(config: Config, policy: Stage | None, examples: list[Any], length):
    """Responses of the policy to prompts of the data: what scores are normalised on."""
    assert policy is not None  # the config refuses normalize without --policy
    prompts = [e.prompt for e in examples[: config.normalize_samples]]
    width = max(map(len, prompts))
    sampling = SamplingConfig(max_new_tokens=length - width, stop_ids=policy.stop_ids)
    sample = functools.partial(generate, policy_apply(policy.model), config=sampling)
    batch = left_padded(prompts, length=width, pad_id=pad_id(policy.tokenizer))
    return jax.jit(sample)(policy.params, batch, key=jax.random.key(config.seed)).batch


def eval_names(metrics: Metrics) -> dict[str, float]:
    found = metrics.compute()
    return {
        "reward/eval_loss": found["reward/loss"],
        "reward/eval_accuracy": found["reward/accuracy"],
    }


def report_accuracy(config: Config, metrics: Metrics) -> dict[str, float]:
    """Prints held-out accuracy with its 95 % (Wilson) interval."""
    found = eval_names(metrics)
    count = int(metrics.counts["reward/accuracy"])
    right = round(found["reward/eval_accuracy"] * count)
    interval = binomtest(right, count).proportion_ci(method="wilson")
    print_table(
        f"Reward model, {config.kind}, held out",
        ["judgements", "accuracy", "95 % interval", "loss (nats)"],
        [
            [
                count,
                found["reward/eval_accuracy"],
                f"{interval.low:.3f} – {interval.high:.3f}",
                found["reward/eval_loss"],
            ]
        ],
    )
    summary = found | {"judgements": count}
    save_json(config.run_dir / "summary.json", summary)
    return summary


def preset(name: str) -> Config:
    """A paper's numbers; the data is still the default."""
    numbers = REWARD_PRESETS[name]
    return Config(
        kind=numbers.kind,
        policy=Path("runs/sft"),
        optim=numbers.optim,
        batch_size=numbers.batch_size,
        epochs=numbers.epochs,
        normalize=numbers.normalize,
    )


if __name__ == "__main__":
    presets = {"default": Config()} | {n: preset(n) for n in REWARD_PRESETS}
    cli.run(main, presets, description=__doc__ or "")
