"""How decoding scales: with batch, context and slots, and what memory it takes.

Each point is a line; all of them are drawn in one picture.
"""

import functools
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogFormatter

from experiments import benchmark_inputs as inputs
from experiments.timing import ForeignCPU, Report, Workload, alternate, report
from experiments.workloads import PROMPT, sampler
from rlhf_jax.models import CausalLM, TransformerConfig, init_params, policy_apply
from rlhf_jax.parallel import Devices
from rlhf_jax.sampling import SamplingConfig, generate

NEW = 64  # tokens of a response
BATCHES = (1, 4, 16, 64, 256)
CONTEXTS = (128, 512, 1_024, 2_048, 4_096)
CONTEXT_ROWS = 4
PREFILL_CHUNK = 512
QUEUE, QUEUE_NEW = 128, 192  # prompts that wait for slots; their longest response
SLOTS = (4, 8, 16, 32, 64)
MEAN_LENGTH = 48  # of the queue's responses, were they not cut


class Panel(NamedTuple):
    """One small plot of the picture."""

    title: str
    xlabel: str
    ylabel: str


PANELS = {
    "batch": Panel("Batch, 64 + 64 tokens", "rows", "new tokens/s"),
    "context": Panel("Context, 4 rows, without prefill", "tokens", "new tokens/s"),
    "slots": Panel(
        "Slots, a queue of 128 responses of 48 tokens", "slots", "new tokens/s"
    ),
    "memory": Panel("Memory of sampling, 4 rows", "tokens of context", "MB"),
}


def curves(
    models: dict[str, TransformerConfig], devices: Devices, *, reps: int
) -> Iterator[Report]:
    """The lines of every curve of every model, as they are measured."""
    for name, model in models.items():
        for batch in BATCHES:
            if batch % len(devices) == 0:
                yield batch_point(name, model, devices, batch=batch, reps=reps)
        for context in CONTEXTS:
            yield context_point(name, model, devices, context=context, reps=reps)
        for slots in SLOTS:
            yield slots_point(name, model, devices, slots=slots, reps=reps)
        for context in CONTEXTS:
            yield memory_point(name, model, context=context)


def batch_point(
    name: str, model: TransformerConfig, devices: Devices, *, batch: int, reps: int
) -> Report:
    """New tokens a second of one batch, its prefill included."""
    foreign, sampling = ForeignCPU(), SamplingConfig(max_new_tokens=NEW)
    run = sampler(model, devices, rows=batch, prompt=PROMPT, sampling=sampling)
    timed = Workload(run, batch * NEW, "new tokens/s")
    [seconds] = alternate([timed], warmup=1, reps=reps)
    return _line("batch", name, batch, timed, seconds, foreign)


def context_point(
    name: str, model: TransformerConfig, devices: Devices, *, context: int, reps: int
) -> Report:
    """New tokens a second at the end of a context, without the time of its prefill.

    The time of 64 new tokens less that of one, which is nearly all prefill; measured
    in turn, and the median of their differences is taken.
    """
    foreign, prompt = ForeignCPU(), context - NEW
    whole, one = (
        Workload(
            sampler(
                model,
                devices,
                rows=CONTEXT_ROWS,
                prompt=prompt,
                sampling=SamplingConfig(new, prefill_chunk=min(PREFILL_CHUNK, prompt)),
            ),
            CONTEXT_ROWS * (NEW - 1),
            "new tokens/s",
        )
        for new in (NEW, 1)
    )
    times = alternate([whole, one], warmup=1, reps=reps)
    seconds = [max(a - b, 1e-9) for a, b in zip(*times, strict=True)]
    return _line("context", name, context, whole, seconds, foreign)


def slots_point(
    name: str, model: TransformerConfig, devices: Devices, *, slots: int, reps: int
) -> Report:
    """New tokens a second of a queue of prompts that are answered in ``slots`` rows.

    A response ends at any of V/48 ids. Random weights make all ids about equally
    probable, so that lengths are geometric with a mean of about 48, and each iteration
    draws others: the rate counts the tokens that came out.
    """
    foreign = ForeignCPU()
    run = sampler(
        model,
        devices,
        rows=QUEUE,
        prompt=PROMPT,
        sampling=SamplingConfig(
            QUEUE_NEW,
            stop_ids=stop_ids(model),
            slots=slots,
            read_ahead=max(1, slots // 4),
        ),
    )
    drawn: list[int] = []
    count = lambda: drawn.append(int(np.sum(run().batch.mask)))
    timed = Workload(count, 1, "new tokens/s")
    [seconds] = alternate([timed], warmup=1, reps=reps)
    tokens = drawn[-reps:]  # those before were the warm-up
    mean = statistics.mean(tokens)
    each = [s * mean / n for s, n in zip(seconds, tokens, strict=True)]
    timed = timed._replace(items=mean)
    return _line("slots", name, slots, timed, each, foreign)


def stop_ids(model: TransformerConfig) -> tuple[int, ...]:
    """The V/48 ids that end a response of the queue."""
    count = max(1, model.vocab_size // MEAN_LENGTH)
    return tuple(range(inputs.FIRST_ID, inputs.FIRST_ID + count))


def memory_point(name: str, model: TransformerConfig, *, context: int) -> Report:
    """Memory that the compiler plans for sampling, beside what the cache is made of."""
    prompts = next(inputs.prompts(model, CONTEXT_ROWS, context - NEW))
    chunk = min(PREFILL_CHUNK, context - NEW)
    sample = functools.partial(
        generate,
        policy_apply(model),
        config=SamplingConfig(NEW, prefill_chunk=chunk),
    )
    key = jax.random.key(0)
    params = jax.eval_shape(functools.partial(init_params, CausalLM(model)), key=key)
    planned: Any = jax.jit(sample).lower(params, prompts, key=key).compile()
    memory = planned.memory_analysis()
    taken = memory.temp_size_in_bytes + memory.output_size_in_bytes
    return {
        "curve": "memory",
        "model": name,
        "x": context,
        "value": round(taken / 1e6, 3),
        "unit": "MB",
        "cache_mb": round(cache_bytes(model, CONTEXT_ROWS, context) / 1e6, 3),
    }


def cache_bytes(model: TransformerConfig, rows: int, context: int) -> int:
    """Bytes of the keys and values of ``rows`` contexts."""
    itemsize = 4 if model.dtype == "float32" else 2
    token = 2 * model.n_layers * model.n_kv_heads * model.d_head * itemsize
    return rows * context * token


def draw(lines: Sequence[Report], path: Path) -> None:
    """One panel a curve, one line a model; both axes are logarithmic."""
    figure = Figure(
        figsize=(12, 8), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    )
    grid = figure.subplots(2, 2, squeeze=False).flat
    for axes, (curve, panel) in zip(grid, PANELS.items(), strict=True):
        _draw(axes, panel, [line for line in lines if line["curve"] == curve])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def _draw(axes: Axes, panel: Panel, lines: Sequence[Report]) -> None:
    for number, model in enumerate(dict.fromkeys(line["model"] for line in lines)):
        own = [line for line in lines if line["model"] == model]
        x, colour = [line["x"] for line in own], f"C{number}"
        axes.plot(x, [line["value"] for line in own], "o-", color=colour, label=model)
        if all("cache_mb" in line for line in own):
            cache = [line["cache_mb"] for line in own]
            axes.plot(x, cache, "--", color=colour, label=f"{model}, cache alone")
    ticks = sorted({line["x"] for line in lines})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    for formatted in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        formatted(LogFormatter(minor_thresholds=(2, 0.5)))
    axes.set_title(panel.title, fontsize=11, loc="left", fontweight="bold")
    axes.set_xlabel(panel.xlabel, fontsize=9)
    axes.set_ylabel(panel.ylabel, fontsize=9)
    axes.tick_params(labelsize=8.5, color="0.7")
    axes.grid(color="0.92", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    if lines:
        axes.legend(fontsize=8.5, frameon=False)


def _line(
    curve: str,
    model: str,
    x: int,
    timed: Workload,
    seconds: Sequence[float],
    foreign: ForeignCPU,
) -> Report:
    whole = report("decode", model, "rlhf_jax", timed, seconds, foreign=foreign)
    return {"curve": curve, "x": x} | whole
