"""The long runs of the crash test and the power-loss test; docs/durability.md says what they do.

    python tools/crash_test.py --kills 200 --mode synced --seed 1 --workers 2      SIGKILL at random moments
    python tools/crash_test.py --images 200 --seed 1                               power cuts; needs Linux and a C compiler
    python tools/crash_test.py --images 200 --lie=-wal                             the same with the WAL's syncs left out: must find losses

Prints the seed and a summary line; exits with 1 after a violation, and says where the run's history lies. The same seed makes
the same clients and the same moments, as far as threads and processes allow.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.store import power_image
from tests.store.crash_run import CrashRun
from tests.store.power_run import PowerRun

IMAGES_PER_LOAD = 50
"""Each such part of the images has a run and a seed of its own."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Kill a broker under load, or cut its power, again and again; verify that nothing acknowledged is lost."
    )
    parser.add_argument("--kills", type=int, default=200, metavar="N")
    parser.add_argument("--images", type=int, default=0, metavar="N", help="power cuts instead of kills")
    parser.add_argument("--mode", choices=("off", "written", "synced"), default="synced")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), metavar="N", help="a random one unless given")
    parser.add_argument("--workers", type=int, default=2, metavar="N")
    parser.add_argument("--load", type=float, default=3, metavar="S", help="seconds of load before the power cuts")
    parser.add_argument("--sync-us", type=int, default=0, metavar="N", help="each sync takes this many microseconds longer (kills)")
    parser.add_argument("--lie", metavar="SUFFIX", help="files whose names end like this are not synced (power cuts)")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    what = f"mode {options.mode}, {options.workers} workers, seed"
    violations = 0
    try:
        if not options.images:
            killed = CrashRun(options.mode, options.kills, options.seed, options.workers, sync_us=options.sync_us, echo=sys.stdout).run()
            print(f"crash test: {what} {options.seed}: {killed}" + (f"; history: {killed.history}" if killed.history else ""))
            return 1 if killed.violations else 0
        for number in range(0, options.images, IMAGES_PER_LOAD):
            seed, images = options.seed + number // IMAGES_PER_LOAD, min(IMAGES_PER_LOAD, options.images - number)
            cut = PowerRun(options.mode, images, seed, options.workers, load_s=options.load, lie=options.lie, echo=sys.stdout).run()
            print(f"power-loss test: {what} {seed}: {cut}" + (f"; kept: {cut.folder}" if cut.folder else ""), flush=True)
            violations += len(cut.violations)
        print(f"power-loss test: {options.images} images, {violations} violations")
    finally:
        power_image.forget_shim()
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
