"""TPU chips and slices, as the cloud names them, and their devices for the compiler."""

import importlib.util
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.experimental import topologies

from rlhf_jax.errors import UserError

USED = 0.98  # of a chip's memory; of v5e's 16 GiB the compiler takes 15.75 at most


class Chip(NamedTuple):
    """What a chip can do at most; cloud.google.com/tpu/docs, read in November 2026."""

    flops: float  # bfloat16 operations a second
    hbm: float  # bytes of memory
    bandwidth: float  # bytes a second that its memory gives
    links: float  # bytes a second that it sends over all its links to other chips
    cores: int  # that the name of a slice counts for each chip

    @property
    def room(self) -> float:
        """Bytes that programs and arrays may take."""
        return USED * self.hbm


CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1228e9, 300e9, 2),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 200e9, 1),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9, 2),
    "v6e": Chip(918e12, 32 * 2**30, 1638e9, 400e9, 1),
}
FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8"} | {
    128: "8x16",
    256: "16x16",
}
CUBES = {1: "1x1x1", 4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4"} | {
    64: "4x4x4",
    128: "4x4x8",
    256: "4x8x8",
    512: "8x8x8",
    1024: "8x8x16",
}


class Slice(NamedTuple):
    """Chips that are rented together."""

    name: str
    kind: str  # of CHIPS
    chips: int
    layout: str

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]


def find_slice(name: str) -> Slice:
    """The slice of a name such as v5e-16; of v4 and v5p names count cores, two a chip.

    Raises:
      UserError: there is none.

    >>> find_slice("v5p-16").chips, find_slice("v5e-16").layout
    (8, '4x4')
    >>> find_slice("v5litepod-4").name
    'v5e-4'
    """
    kind, _, count = name.replace("v5litepod", "v5e").partition("-")
    if kind not in CHIPS:
        raise UserError(
            f"slice {name}: expected one of {', '.join(CHIPS)}, and a number, as v5e-16"
        )
    layouts = FLAT if CHIPS[kind].cores == 1 else CUBES
    names = {f"{CHIPS[kind].cores * chips}": chips for chips in layouts}
    if count not in names:
        raise UserError(
            f"slice {name}: no such size of {kind}; expected one of "
            f"{', '.join(f'{kind}-{size}' for size in names)}"
        )
    chips = names[count]
    return Slice(f"{kind}-{count}", kind, chips, layouts[chips])


def compile_devices(of: Slice) -> Sequence[Any]:
    """Devices to compile for: libtpu's description of the slice, none is needed.

    Raises:
      UserError: libtpu is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("the compiler for TPUs is missing: pip install '.[tpu]'")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no TPU VM's metadata is asked
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # it compiles, no more
    alone = {"chips_per_host_bounds": (1, 1, 1)} if of.chips == 1 else {}
    return topologies.get_topology_desc(
        platform="tpu", topology_name=f"{of.kind}:{of.layout}", **alone
    ).devices
