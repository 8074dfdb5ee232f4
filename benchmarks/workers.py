"""Time the same trials with one worker and with two, and print the ratio.

    python benchmarks/workers.py [--steps N]

Each trial is a process with one thread. The workers' start, which both sides pay, is in the times.
"""

import argparse
import tempfile
import time
from pathlib import Path

from allyouneed.evidence import run
from allyouneed.papers.alibi.experiment import EXPERIMENT


def seconds(workers: int, steps: int) -> float:
    """Run the four arms of the ALiBi experiment with one seed in a folder of their own; return the time."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        finished = run(EXPERIMENT, seeds=1, settings={"steps": str(steps)}, workers=workers, folder=Path(folder))
        taken = time.perf_counter() - began
    if finished.failures:
        raise RuntimeError(finished.failures[0].error)
    return taken


def main() -> None:
    """Time one worker and two, in turn, twice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="optimiser steps of each trial")
    steps = parser.parse_args().steps
    seconds(2, 1)  # starts the workers, which stay
    for _ in range(2):
        one, two = seconds(1, steps), seconds(2, steps)
        print(f"four trials of {steps} steps: one worker {one:.1f} s, two workers {two:.1f} s, ratio {one / two:.2f}")


if __name__ == "__main__":
    main()
