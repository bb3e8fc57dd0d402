"""How often tests that repeat something at random do so."""

import os


def repeats(ordinary: int) -> int:
    """``ordinary`` times, or as often as FAULTS_REPEAT says."""
    return int(os.environ.get("FAULTS_REPEAT", ordinary))
