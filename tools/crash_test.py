"""The long run of the crash test: ``python tools/crash_test.py --kills 200 --mode synced --seed 1 --workers 2``.

Prints a summary line; exits with 1 after a violation, and says where the run's history lies. The same seed makes the same clients and the same
moments, as far as threads and processes allow. See docs/durability.md.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.store.crash_run import CrashRun


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill a broker under load again and again; verify that nothing acknowledged is lost.")
    parser.add_argument("--kills", type=int, default=200, metavar="N")
    parser.add_argument("--mode", choices=("written", "synced"), default="synced")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), metavar="N", help="a random one unless given")
    parser.add_argument("--workers", type=int, default=2, metavar="N")
    parser.add_argument("--sync-us", type=int, default=0, metavar="N", help="each sync takes this many microseconds longer; needs a C compiler")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    outcome = CrashRun(options.mode, options.kills, options.seed, options.workers, sync_us=options.sync_us, echo=sys.stdout).run()
    print(f"crash test: mode {options.mode}, {options.workers} workers, seed {options.seed}: {outcome}")
    if outcome.history is not None:
        print(f"history: {outcome.history}")
    return 1 if outcome.violations else 0


if __name__ == "__main__":
    sys.exit(main())
