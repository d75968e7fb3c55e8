"""Compares this checkout with another one, usually the commit before, in interleaved rounds on one machine.

    git worktree add /tmp/before HEAD~1 && make -C /tmp/before .venv/installed
    python bench/compare.py /tmp/before --rounds 5 --seconds 6

Each round runs `bench/run.py` of both checkouts, in alternating order, so that a machine whose speed changes treats both
alike. Prints the medians and the ratio of each figure that both measure. Bounded: two short runs for each round.
"""

import argparse
import re
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
PATIENCE_SECONDS = 1800
_ROW = re.compile(
    r"^\| (?P<name>[^|]+) \| (?P<rate>[\d,]+) \|[^|]*\|[^|]*\|[^|]*\| *(?P<p99>[\d.]*) *\|", re.MULTILINE
)

Figures = dict[str, list[float]]


def measure(checkout: Path, seconds: int, connections: int) -> list[tuple[str, float, float | None]]:
    """One round of a checkout: name, requests a second and p99 in milliseconds of each figure."""
    command = [checkout / ".venv/bin/python", "bench/run.py", "--rounds", "1"]
    command += ["--seconds", str(seconds), "--connections", str(connections)]
    done = subprocess.run(
        command, cwd=checkout, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{checkout}: {done.stderr[-2000:]}")
    return [
        (row["name"], float(row["rate"].replace(",", "")), float(row["p99"]) if row["p99"] else None)
        for row in _ROW.finditer(done.stdout)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, help="the other checkout, with its .venv")
    parser.add_argument("--rounds", type=int, default=5, choices=range(1, 11))
    parser.add_argument("--seconds", type=int, default=6, choices=range(1, 61), help="of each measurement")
    parser.add_argument("--connections", type=int, default=32, choices=range(1, 513))
    arguments = parser.parse_args()
    checkouts = {"before": arguments.before.resolve(), "now": HERE}
    rates: dict[str, Figures] = {name: defaultdict(list) for name in checkouts}
    tails: dict[str, Figures] = {name: defaultdict(list) for name in checkouts}
    for number in range(arguments.rounds):
        for which in sorted(checkouts, reverse=number % 2 == 1):
            print(f"round {number + 1}: {which}", file=sys.stderr, flush=True)
            for name, rate, p99 in measure(checkouts[which], arguments.seconds, arguments.connections):
                rates[which][name].append(rate)
                if p99 is not None:
                    tails[which][name].append(p99)
    print(
        f"{arguments.rounds} interleaved rounds of {arguments.seconds} s, {arguments.connections} connections\n"
    )
    print("| | before/s | now/s | ratio | p99 before, ms | p99 now, ms |\n|-|-|-|-|-|-|")
    for name, before in rates["before"].items():
        if (now := rates["now"].get(name)) is None:
            continue
        was, is_now = statistics.median(before), statistics.median(now)
        p99 = [f"{statistics.median(tails[w][name]):.1f}" if tails[w][name] else "" for w in checkouts]
        print(f"| {name} | {was:,.0f} | {is_now:,.0f} | {is_now / was:.2f} | {p99[0]} | {p99[1]} |")


if __name__ == "__main__":
    main()
