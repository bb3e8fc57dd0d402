"""Settings of the CPU backend, each in a process of its own: they cannot be undone."""

import subprocess
import sys

import pytest

from rlhf_jax.cpu import SCHEDULER

PREPARE = """
import os, resource, sys
from rlhf_jax.cpu import prepare_cpu
if sys.argv[1] == "prepared":
    prepare_cpu()
"""
FAULTS = """
import jax, jax.numpy as jnp
x = jnp.ones((3000, 64))
f = jax.jit(lambda x: (x @ x.T) @ x)  # x·xᵀ, 36 MB, lies in memory of its own
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
counts = [faults()]
# More calls than the heap needs to grow: on a busy machine the memory of a call may
# be freed only after the next one has asked for its own.
for _ in range(29):
    f(x).block_until_ready()
    counts.append(faults())
print(sorted(b - a for a, b in zip(counts, counts[1:]))[14])  # of a call, the median
"""

GIVEN_BACK = """
import jax, jax.numpy as jnp
rss = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
f = jax.jit(lambda n: jnp.sort(jnp.arange(1e7) * n)[:1])  # 40 MB
f(1).block_until_ready()
held = rss()
jax.jit(lambda x: x + 1)(1).block_until_ready()
print(held - rss())
"""

LISTENERS = """
import jax.monitoring
added = []
jax.monitoring.register_event_duration_secs_listener = added.append
for _ in range(3):
    prepare_cpu()
print(len(added))
"""


def _run(program: str, how: str, **env: str) -> str:
    command = [sys.executable, "-c", PREPARE + program, how]
    env = {"PATH": "", "JAX_PLATFORMS": "cpu", **env}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    return done.stdout.strip()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_temporary_memory_keeps_its_pages():
    pages = 4 * 3000**2 // 4096
    assert int(_run(FAULTS, "plain")) > pages / 2
    assert int(_run(FAULTS, "prepared")) < pages / 10


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_compiling_gives_back_what_is_free():
    assert int(_run(GIVEN_BACK, "prepared")) > 30e6


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_prepared_again_compiling_takes_no_longer():
    assert _run(LISTENERS, "not yet") == "1"


@pytest.mark.parametrize("given", ["", f"{SCHEDULER}=true"])
def test_a_flag_that_is_given_stays(given):
    flags = _run("print(os.environ['XLA_FLAGS'])", "prepared", XLA_FLAGS=given)
    assert flags == (given or f"{SCHEDULER}=false")
