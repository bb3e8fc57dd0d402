"""All algorithms on TinyReviews, from the same start, measured in the same way.

  python -m experiments.compare
  python -m experiments.compare --seeds 0 --algorithms ppo grpo dpo
  python -m experiments.compare --scale 0.03 --run-dir runs/rehearsal

For every seed SFT and the reward model first, as `experiments.quickstart` makes them;
then each algorithm of `experiments.compared` starts from there. Every policy is asked
the same 256 held-out prompts with the same randomness. A result is written as soon as
it is there, and a run that was stopped goes on where it was: what has a result is not
trained again. What fails does not stop the others, and is tried again the next time.

The table is printed and written to table.md, the picture to compare.png. A seed takes
about 25 minutes on 2 CPU cores: docs/algorithms/compare.md has the numbers.
"""

import dataclasses
import gc
import shutil
import sys
import time
import traceback
from pathlib import Path

import jax
import optax

from experiments import cli, policy, quickstart
from experiments.compared import ROWS, Start
from experiments.comparison import Result, draw, read_results, show
from experiments.keeping import keep, keep_compiled
from experiments.networks import make_networks
from experiments.online import read
from experiments.rollouts import make_compare, make_draw, make_scorer
from experiments.samples import evaluate_policy
from rlhf_jax.errors import UserError
from rlhf_jax.parallel import local_devices, replicate
from rlhf_jax.rundir import create_run_dir
from rlhf_jax.stages import FLOAT32, load_policy
from rlhf_jax.steps import POLICY_PRESETS, create_policy_state

# It has a reference and no critic, so that what it measures includes the KL.
MEASURED_BY = POLICY_PRESETS["reinforce_pp"](policy.ALONE)


@dataclasses.dataclass(frozen=True)
class Config:
    """A comparison of algorithms."""

    run_dir: Path = Path("runs/compare")
    """Where the data, a folder a seed, the table and the picture go."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of everything but the data."""
    algorithms: tuple[str, ...] = tuple(ROWS)
    """Which of them; distill needs ppo before it."""
    scale: float = 1.0
    """Share of each algorithm's samples and updates; less is a rehearsal."""
    devices: int | None = None
    """Number of devices; none uses all."""

    def __post_init__(self):
        for name in self.algorithms:
            if name not in ROWS:
                known = ", ".join(ROWS)
                raise UserError(f"algorithms: {name}: expected some of {known}")


def main(config: Config) -> list[Result]:
    """Trains what has no result yet, and shows all that is asked for."""
    asked = {"seeds": Config.seeds, "algorithms": Config.algorithms}
    same = dataclasses.replace(config, **asked)  # another run may ask for others
    run_dir = create_run_dir(config.run_dir, same, resume=True)
    keep_compiled(run_dir / "compiled")
    quickstart.write_data(run_dir / "data")
    for seed in config.seeds:
        start = Start(run_dir / f"seed{seed}", seed, config.scale, config.devices)
        keep(start.root / "start.json", begin, start)
        for name in config.algorithms:
            keep(start.root / f"{name}.json", train, name, start)
            jax.clear_caches()  # each compiles functions of its own
            gc.collect()
    results = read_results(run_dir, config.seeds, ("start", *config.algorithms))
    show(results, run_dir / "table.md")
    draw(results, run_dir / "compare.png")
    print(f"table: {run_dir / 'table.md'}  picture: {run_dir / 'compare.png'}")
    if failed := [r for r in results if "error" in r]:
        names = ", ".join(f"{r['algorithm']} (seed {r['seed']})" for r in failed)
        sys.exit(f"error: failed, see above and table.md: {names}")
    return results


def begin(start: Start) -> Result:
    """SFT and reward model; what the SFT policy says is where all begin."""
    link, began = start.root / "data", time.perf_counter()
    if not link.exists():
        link.symlink_to("../data", target_is_directory=True)
    stages = quickstart.Config(
        start.root,
        scale=start.scale,
        devices=start.devices,
        seed=start.seed,
        resume=True,
    )
    for name, stage in quickstart.stages(stages):
        if name == "ppo":
            break
        stage()
    seconds = time.perf_counter() - began
    named = {"algorithm": "start", "seed": start.seed}
    spent = {"samples": 0, "seconds": seconds}
    return named | measure(start.root / "sft", start) | spent


def train(name: str, start: Start) -> Result:
    """Runs an algorithm's script and measures its policy; or says what went wrong."""
    row, run_dir = ROWS[name], start.root / name
    named = {"algorithm": name, "seed": start.seed}
    print(f"\n{name}, seed {start.seed}")
    if run_dir.exists():
        shutil.rmtree(run_dir)  # it was stopped: its seconds would not be a whole run's
    began = time.perf_counter()
    try:
        config = row.config(start, run_dir)
        summary = row.main(config)
        seconds = time.perf_counter() - began
        found = row.measured(summary) or measure(run_dir, start)
    except Exception as error:  # whatever it is, the others can do without
        traceback.print_exc()
        return named | {"error": f"{type(error).__name__}: {error}"}
    return named | found | {"samples": row.samples(config), "seconds": seconds}


def measure(path: Path, start: Start) -> Result:
    """What a policy says to held-out prompts, and how far it is from the SFT policy."""
    asking = policy.Config(path, algorithm=MEASURED_BY, **start.scored())
    sft, reward, gold, algorithm, _, asked = read(asking, asking.algorithm)
    devices, key = local_devices(start.devices), jax.random.key(0)
    nets = make_networks(sft, reward, None, None, None, key=key)
    params = load_policy(path, FLOAT32).params
    state = create_policy_state(nets.apply_fn, params, optax.identity(), kl_coef=0.0)
    state, ref, judge = replicate((state, sft.params, nets.judge), devices)
    score = make_scorer(reward, judge, "score", sft.tokenizer, devices)
    drawn = make_draw(nets, algorithm, score, None, devices)
    compared = make_compare(nets, algorithm, ref, None, devices)
    sampled_of = lambda state, *given: compared(state, drawn(state.params, *given))
    found = evaluate_policy(sampled_of, asked, key, sft.tokenizer, gold, state)
    return found.summary()


if __name__ == "__main__":
    cli.run(main, {"default": Config()}, description=__doc__ or "")
