"""What saving costs: seconds of updates with a checkpoint under way and without.

  python -m experiments.save_cost

Windows of updates in turn: one begins a checkpoint before its first update, the next
one does not. What the first kind takes longer is the cost of a checkpoint, hashes
included; its share is that of the updates between two checkpoints.
"""

import dataclasses
import statistics
import tempfile
import time

import jax

from experiments import cli
from experiments.benchmark_inputs import MODELS
from rlhf_jax import checkpoint
from rlhf_jax.data.batching import right_padded
from rlhf_jax.models import CausalLM, init_params, policy_apply
from rlhf_jax.optim import OptimConfig, make_optimizer
from rlhf_jax.steps import create_state, sft_step
from rlhf_jax.steps.state import tree_bytes
from rlhf_jax.terminal import print_table


@dataclasses.dataclass(frozen=True)
class Config:
    """Supervised fine-tuning at a size of the benchmark, as in its W2."""

    model: str = "M25"
    """M25 has 33.6 million parameters, M3 3.05 million."""
    rows: int = 8
    """Of an update."""
    length: int = 256
    """Tokens of a row."""
    every: int = 50
    """Updates between checkpoints."""
    window: int = 5
    """Updates that are timed together; a checkpoint is written within them."""
    rounds: int = 9
    """Windows of each kind."""


def main(config: Config) -> dict[str, float]:
    """Times both kinds of window, and prints the share."""
    model = MODELS[config.model]
    params = init_params(CausalLM(model), key=jax.random.key(0))
    state = create_state(policy_apply(model), params, make_optimizer(OptimConfig(), 1))
    ids = jax.random.randint(
        jax.random.key(1), (config.rows, config.length), 0, model.vocab_size
    ).tolist()
    completions = [tuple(row) for row in ids]
    batch = right_padded(
        [()] * config.rows, completions, length=config.length, pad_id=0
    )
    update = jax.jit(sft_step, donate_argnums=0)
    state, _ = update(state, batch)
    size, taken = tree_bytes(state), {True: [], False: []}
    blocked = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(1 + 2 * config.rounds):
            saves, saving, began = number % 2 == 0, None, time.perf_counter()
            if saves:
                saving = checkpoint.start_save(
                    folder, number, state, host_state={}, keep=2
                )
                blocked.append(time.perf_counter() - began)
            for _ in range(config.window):
                state, _ = jax.block_until_ready(update(state, batch))
            if saving is not None:
                saving.wait()
            taken[saves].append(time.perf_counter() - began)
        began, number = time.perf_counter(), 2 + 2 * config.rounds
        checkpoint.save(folder, number, state, host_state={}, keep=2)
        alone = time.perf_counter() - began
    with_it, without = (statistics.median(taken[saves][1:]) for saves in (True, False))
    found = {
        "MB of a checkpoint": size / 1e6,
        "s an update": without / config.window,
        "s of a checkpoint by itself": alone,
        "s until training goes on": statistics.median(blocked[1:]),
        "s that it costs training": with_it - without,
        f"% of {config.every} updates": 100
        * (with_it - without)
        / (config.every * without / config.window),
    }
    print_table(f"Checkpoints of {config.model}", ["", "found"], [*found.items()])
    return found


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
