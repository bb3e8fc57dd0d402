"""Responses of very different length, and prompts that are answered several times.

  python -m experiments.queue_benchmark --model M25
  python -m experiments.queue_benchmark --transformers PYTHON

Rates of decoding, measured in turn: full batches whose responses all have the longest
length, or all the mean one; 256 prompts in as many slots; and, with a Python that has
torch, `transformers.generate` on the same prompts in batches of as many rows. A
response ends at any of V/48 ids: random weights make all ids about equally probable, so
that lengths are geometric with a mean of about 48, cut at 256. Then the time to read
prompts that have 8 completions, with and without sharing.
"""

import collections
import dataclasses
import functools
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments import benchmark_inputs as inputs
from experiments import cli, transformers_queue
from experiments.curves import stop_ids
from experiments.measure import take_devices
from experiments.shared_prompts import sharing
from experiments.workloads import PROMPT, sampler
from rlhf_jax.errors import UserError
from rlhf_jax.models import TransformerConfig
from rlhf_jax.parallel import Devices
from rlhf_jax.sampling import SamplingConfig
from rlhf_jax.terminal import print_table

PROMPTS, NEW, MEAN = 256, 256, 48
STAGES = 4  # the last rows are decoded in halves, quarters, eighths of the slots


@dataclasses.dataclass(frozen=True)
class Config:
    """A queue of prompts, and shared prompts."""

    model: tuple[str, ...] = tuple(inputs.MODELS)
    """Sizes: M25 has 33.6 million parameters, M3 3.05 million."""
    slots: int = 16
    """Rows decoded at a time, all devices together."""
    read_ahead: int = 16
    """Prompts that are read together, all devices together."""
    reps: int = 5
    """Timed iterations of each."""
    devices: int = 1
    """Devices that share the prompts; a CPU is made into this many."""
    transformers: Path | None = None
    """A Python that has torch and transformers; none leaves them out."""


def main(config: Config) -> list[dict[str, float]]:
    """Measures, prints a table a model, and returns their numbers."""
    for name in config.model:
        if name not in inputs.MODELS:
            raise UserError(
                f"--model {name}: no such size; give {', '.join(inputs.MODELS)}"
            )
    devices, found = take_devices(config.devices), []
    for name in config.model:
        model = inputs.MODELS[name]
        numbers = queue_rates(config, name, model, devices)
        numbers["prefill, not shared / shared"] = sharing(
            model, new=NEW, reps=config.reps
        )
        print_table(
            f"{name}: {PROMPTS} prompts of {PROMPT} tokens, {config.slots} slots on "
            f"{config.devices} device(s), medians of {config.reps}",
            ["", ""],
            [[label, value] for label, value in numbers.items()],
        )
        found.append(numbers)
    return found


def queue_rates(
    config: Config, name: str, model: TransformerConfig, devices: Devices
) -> dict[str, float]:
    """Tokens a second of the batch, the queue and transformers, and what they share."""
    fixed = {
        length: sampler(
            model,
            devices,
            rows=config.slots,
            prompt=PROMPT,
            sampling=SamplingConfig(length),
        )
        for length in (NEW, MEAN)
    }
    queue = sampler(
        model,
        devices,
        rows=PROMPTS,
        prompt=PROMPT,
        sampling=SamplingConfig(
            NEW,
            stop_ids=stop_ids(model),
            slots=config.slots // len(devices),
            read_ahead=max(1, config.read_ahead // len(devices)),
            stages=STAGES,
        ),
    )
    lengths: list[np.ndarray] = []
    rates: dict[Any, list[float]] = collections.defaultdict(list)

    def timed(label: Any, run: Callable[[], int]) -> None:
        start = time.perf_counter()
        tokens = run()
        rates[label].append(tokens / (time.perf_counter() - start))

    def answer() -> int:
        mask = np.asarray(queue().batch.mask)
        lengths.append(mask.reshape(-1, mask.shape[-1]).sum(axis=1))
        return int(lengths[-1].sum())

    count = lambda length: int(np.sum(fixed[length]().batch.mask))
    for length in fixed:
        count(length)  # compiles
    answer()
    for _ in range(config.reps):
        for length in fixed:
            timed(length, functools.partial(count, length))
        timed("queue", answer)
        if config.transformers is not None:
            rate = run_transformers(config.transformers, name, config.slots)
            rates["transformers"].append(rate)
    median = {label: statistics.median(found) for label, found in rates.items()}
    drawn = np.concatenate(lengths[1:])
    numbers = {
        f"fixed length, {NEW} tokens each: tokens/s": median[NEW],
        f"fixed length, {MEAN} tokens each: tokens/s": median[MEAN],
        "queue: tokens/s": median["queue"],
        "mean length of its responses": float(drawn.mean()),
        "longest of them": float(drawn.max()),
        f"queue / fixed length of {NEW}": median["queue"] / median[NEW],
        f"queue / fixed length of {MEAN}": median["queue"] / median[MEAN],
    }
    if "transformers" in median:
        numbers["transformers, best variant: tokens/s"] = median["transformers"]
        numbers["queue / transformers"] = median["queue"] / median["transformers"]
    return numbers


def run_transformers(python: Path, name: str, rows: int) -> float:
    """Tokens a second of `transformers.generate`, in its own process."""
    model = inputs.MODELS[name]
    asked = next(inputs.ids(model, PROMPTS, PROMPT, seed=0))
    task = transformers_queue.Task(
        prompts=[list(prompt) for prompt in asked],
        stop_ids=list(stop_ids(model)),
        rows=rows,
        new=NEW,
        sizes={
            "vocab_size": model.vocab_size,
            "hidden_size": model.d_model,
            "num_hidden_layers": model.n_layers,
            "num_attention_heads": model.n_heads,
            "num_key_value_heads": model.n_kv_heads,
            "intermediate_size": model.d_ff,
        },
    )
    script = Path(transformers_queue.__file__)
    done = subprocess.run(
        [str(python), str(script)],
        input=transformers_queue.dump(task),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip() or "nothing on stderr").splitlines()[-1]
        raise UserError(f"--transformers {python}: generate failed: {last}")
    return float(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
