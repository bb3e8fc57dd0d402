"""What the machine allows: the products that decoding cannot do without, and its rates.

Decoding a token multiplies each weight matrix once; nothing that a decoder does is
faster than these products alone, at the same shapes and in the same process.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark_inputs import MODELS
from experiments.measure import build, time_in_turn
from experiments.timing import Case, Report, Workload
from experiments.workloads import DECODE_NEW, DECODE_ROWS, PROMPT
from rlhf_jax.models import TransformerConfig
from rlhf_jax.parallel import Devices, data_parallel, replicate, shard
from rlhf_jax.types import Array

STEPS = 64  # decoding steps in an iteration
SIDE = 2_048  # of a square matrix
READ = 2**28  # float32, 1 GiB
INTERLEAVED = 5  # rounds of decoding and its limit, at least


def machine_rates(devices: Devices, *, warmup: int, reps: int) -> Iterator[Report]:
    """What a product and a read reach at most."""
    for name, make in (("product of 2048³", matrix_rate), ("read of 1 GiB", read_rate)):
        timed = [(Case(name, ""), make())]
        yield from time_in_turn(timed, devices[:1], warmup=warmup, reps=reps)


def decode_limits(
    name: str, devices: Devices, *, beside: bool, warmup: int, reps: int
) -> list[Report]:
    """Products of decoding alone, two lines; ``beside`` W1, whose line is the third."""
    model, case = MODELS[name], Case("W1", name)
    sizes = {"rows": DECODE_ROWS, "prompt": PROMPT, "new": DECODE_NEW}
    products = {
        "W1 weight products alone": weight_products(model, devices, rows=DECODE_ROWS),
        "W1 products alone, of prompts and cache too": decode_products(
            model, devices, **sizes
        ),
    }
    timed = [(Case(label, name), workload) for label, workload in products.items()]
    if beside:
        timed.append((case, build(case, model, devices)))
    return time_in_turn(timed, devices, warmup=warmup, reps=max(reps, INTERLEAVED))


def weight_products(
    model: TransformerConfig, devices: Devices, *, rows: int
) -> Workload:
    """q, k, v, o, gate, up, down of every layer and the output, for ``rows`` tokens.

    Every weight is an array of its own. A step's input depends on all products of the
    step before; within a step they are independent.
    """
    normal = np.random.default_rng(0).standard_normal
    shapes = product_shapes(model)
    weights = [normal(shape, np.float32) * shape[0] ** -0.5 for shape in shapes]
    inputs = {width: normal((rows, width), np.float32) for width, _ in shapes}
    run = _on_devices(_multiply, weights, inputs, devices)
    return Workload(run, rows * STEPS, "tokens/s")


def decode_products(
    model: TransformerConfig, devices: Devices, *, rows: int, prompt: int, new: int
) -> Workload:
    """All products of W1: of reading the prompts once, then of ``new`` steps.

    A step's are those of `weight_products` and, in each layer, of the queries with
    the keys and of the weights with the values of prompt + new / 2 columns.
    """
    normal = np.random.default_rng(0).standard_normal
    shapes = product_shapes(model)
    weights = [normal(shape, np.float32) * shape[0] ** -0.5 for shape in shapes]
    groups = model.n_heads // model.n_kv_heads
    columns, heads = prompt + new // 2, (rows, model.n_kv_heads)
    batch = {
        "prompt": {i: normal((rows, prompt, i), np.float32) for i, _ in shapes},
        "inputs": {i: normal((rows, i), np.float32) for i, _ in shapes},
        "queries": normal((*heads, groups, model.d_head), np.float32),
        "keys": [
            normal((*heads, model.d_head, columns), np.float32)
            for _ in range(model.n_layers)
        ],
        "values": [
            normal((*heads, columns, model.d_head), np.float32)
            for _ in range(model.n_layers)
        ],
    }
    step = functools.partial(_decode_products, new=new)
    return Workload(_on_devices(step, weights, batch, devices), rows * new, "tokens/s")


def product_shapes(model: TransformerConfig) -> list[tuple[int, int]]:
    """[in, out] of each weight matrix that a token is multiplied with."""
    width, heads = model.d_model, model.n_heads * model.d_head
    kv_heads = model.n_kv_heads * model.d_head
    layer = [
        (width, heads),
        (width, kv_heads),
        (width, kv_heads),
        (heads, width),
        (width, model.d_ff),
        (width, model.d_ff),
        (model.d_ff, width),
    ]
    return layer * model.n_layers + [(width, model.vocab_size)]


def matrix_rate() -> Workload:
    """A product of square matrices on one device."""
    x = jax.random.normal(jax.random.key(0), (SIDE, SIDE))
    multiply = jax.jit(jnp.matmul)
    run = lambda: multiply(x, x).block_until_ready()
    return Workload(run, 2 * SIDE**3 // 10**9, "GFLOP/s")


def read_rate() -> Workload:
    """The sum of 1 GiB on one device."""
    x, total = jnp.ones(READ), jax.jit(jnp.sum)
    run = lambda: total(x).block_until_ready()
    return Workload(run, round(4 * READ / 1e9, 3), "GB/s")


def _on_devices(
    step: Callable, weights: Any, batch: Any, devices: Devices
) -> Callable[[], Any]:
    mapped = data_parallel(step, devices, in_axes=(None, 0), out_axes=0)
    weights, batch = replicate(weights, devices), shard(batch, devices)
    return lambda: jax.block_until_ready(mapped(weights, batch))


def _multiply(
    weights: list[Array], inputs: dict[int, Array], *, axis_name: str
) -> dict[int, Array]:
    """``STEPS`` times every product, of inputs that the last step's products move."""
    del axis_name  # rows are independent
    step = lambda _, inputs: _moved(inputs, _largest(weights, inputs))
    return jax.lax.fori_loop(0, STEPS, step, inputs)


def _decode_products(
    weights: list[Array], batch: dict[str, Any], *, new: int, axis_name: str
) -> dict[int, Array]:
    """What `decode_products` says."""
    del axis_name

    def step(_, inputs: dict[int, Array]) -> dict[int, Array]:
        largest = _largest(weights, inputs)
        queries = batch["queries"] + largest[:, :, None, None]
        for keys, values in zip(batch["keys"], batch["values"], strict=True):
            mixed = (queries @ keys) @ values
            largest += jnp.max(mixed, axis=(1, 2, 3))[:, None]
        return _moved(inputs, largest)

    # The output's product is made of the last token of a prompt alone.
    prompt = {i: x.reshape(-1, i) for i, x in batch["prompt"].items()}
    read = jnp.max(_largest(weights[:-1], prompt))
    return jax.lax.fori_loop(0, new, step, _moved(batch["inputs"], read))


def _largest(weights: list[Array], inputs: dict[int, Array]) -> Array:
    """[rows, 1]: from every product; a sum of them would not need the products."""
    maxima = (jnp.max(inputs[w.shape[0]] @ w, axis=1, keepdims=True) for w in weights)
    return functools.reduce(jnp.add, maxima)


def _moved(inputs: dict[int, Array], by: Array) -> dict[int, Array]:
    return {width: x + 1e-9 * by for width, x in inputs.items()}
