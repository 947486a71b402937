"""Runs the benchmarks, prints their tables and writes benchmarks/results.json.

Usage: python -m benchmarks.run [--only=navsynth,mocogan,...] [--rounds=3] [--seconds=2] [--norm=none|batch]
           [--clock=wall|processor]
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.util
import json
import os
import pathlib
import sys

import benchmarks

NAMES = ("data", "latent_table", "checkpoints", "navsynth", "mocogan", "vgan", "i3d", "metrics", "serving")
NEEDS_TORCH = ("navsynth", "mocogan", "vgan", "i3d")
RESULTS = pathlib.Path(__file__).parent / "results.json"


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.run", description=__doc__.split("\n")[0])
    parser.add_argument("--only", default=",".join(NAMES), help=f"comma-separated: {', '.join(NAMES)}")
    parser.add_argument("--rounds", type=int, default=3, help="how often the sides take turns")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one turn")
    parser.add_argument("--norm", choices=("none", "batch"), default="none", help="normalisation in the generator")
    parser.add_argument("--clock", choices=tuple(benchmarks.CLOCKS), help="read only this clock")
    given = parser.parse_args(argv)
    names = given.only.split(",")
    unknown = [name for name in names if name not in NAMES]
    if unknown or given.rounds < 1:
        parser.error(f"--only takes names out of {', '.join(NAMES)}, and --rounds at least 1")
    if any(name in NEEDS_TORCH for name in names) and importlib.util.find_spec("torch") is None:
        parser.error(f"{', '.join(NEEDS_TORCH)} is measured against PyTorch: pip install -e '.[bench]'")
    machine = benchmarks.machine()
    versions = ", ".join(f"{name} {machine[name]}" for name in ("tensorflow", "keras", "torch"))
    print(f"{machine['processor']}, {machine['cores']} cores ({', '.join(machine['instructions'])}); {versions}")
    if machine["load"] > 0.5:
        print(
            f"This machine is busy (load {machine['load']:.1f}): read the processor times; times on the wall mean little.",
            file=sys.stderr,
        )
    old = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in names:
        module = importlib.import_module(f"benchmarks.{name}")
        clocks = (given.clock,) if given.clock else tuple(benchmarks.CLOCKS)
        result = module.run(rounds=given.rounds, seconds=given.seconds, norm=given.norm, clocks=clocks)
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        # one benchmark's numbers may be newer than another's, so each keeps its own machine and date
        old[name] = {"measured": now, "machine": {**machine, "load_after": os.getloadavg()[0]}, **result}
        RESULTS.write_text(json.dumps(old, indent=1) + "\n")
    print(f"written to {RESULTS}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
