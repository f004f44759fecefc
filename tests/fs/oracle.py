"""How the state machines that compare a filesystem with a model run, as the environment says.

PYFUSEKIT_ORACLE_EXAMPLES   how many sequences
PYFUSEKIT_ORACLE_SEED       a number: other sequences than usual
PYFUSEKIT_ORACLE_SHRINK     1: when one fails, look for the shortest that does; takes minutes
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

SEED = os.environ.get("PYFUSEKIT_ORACLE_SEED")
SHRINK = os.environ.get("PYFUSEKIT_ORACLE_SHRINK") == "1"


def examples(usual: int) -> int:
    """Return how many sequences are asked for."""
    return int(os.environ.get("PYFUSEKIT_ORACLE_EXAMPLES", str(usual)))


def run_machine(machine: Any, max_examples: int, steps: int) -> None:
    """Run *machine* for so many sequences of so many steps, the same ones each time unless a seed is given."""
    if SEED is not None:
        machine = seed(int(SEED))(machine)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=max_examples,
            stateful_step_count=steps,
            derandomize=SEED is None,
            phases=(Phase.generate, Phase.shrink) if SHRINK else (Phase.generate,),
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
