"""Workloads by their names, on devices by their number: timed, a line each."""

import jax

from experiments.benchmark_inputs import MODELS
from experiments.timing import Case, ForeignCPU, Report, Workload, alternate, report
from experiments.workloads import WORKLOADS
from rlhf_jax.errors import UserError
from rlhf_jax.models import TransformerConfig
from rlhf_jax.parallel import Devices, local_devices

PEER = "rlhf_jax"


def check_names(models: tuple[str, ...], workloads: tuple[str, ...]) -> None:
    """Refuses sizes and workloads that there are not.

    Raises:
      UserError: the message names the option.
    """
    for option, given, known in (
        ("--model", models, MODELS),
        ("--workload", workloads, WORKLOADS),
    ):
        for name in given:
            if name not in known:
                names = ", ".join(known)
                raise UserError(f"{option} {name}: expected some of {names}")


def take_devices(count: int) -> Devices:
    """The first devices; a CPU is told first how many it is."""
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # too late: whoever started the backend has said how many
        pass
    return local_devices(count)


def build(case: Case, model: TransformerConfig, devices: Devices) -> Workload:
    """The workload, ready to run."""
    options = {} if case.beta is None else {"beta": case.beta}
    return WORKLOADS[case.workload](model, devices, **options)


def time_workload(
    case: Case, model: TransformerConfig, devices: Devices, *, warmup: int, reps: int
) -> Report:
    """One workload's line."""
    timed = build(case, model, devices)
    [line] = time_in_turn([(case, timed)], devices, warmup=warmup, reps=reps)
    return line


def time_in_turn(
    timed: list[tuple[Case, Workload]], devices: Devices, *, warmup: int, reps: int
) -> list[Report]:
    """The lines of workloads whose iterations alternate."""
    for _, workload in timed:
        for _ in range(warmup):
            workload.run()
    foreign = ForeignCPU()
    found = alternate([workload for _, workload in timed], warmup=0, reps=reps)
    more = {"jax": jax.__version__, "devices": len(devices)}
    more["platform"] = devices[0].platform
    return [
        report(
            case.workload,
            case.model,
            PEER,
            workload,
            seconds,
            foreign=foreign,
            **more,
            **({} if case.beta is None else {"beta": case.beta}),
        )
        for (case, workload), seconds in zip(timed, found, strict=True)
    ]
