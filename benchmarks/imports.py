"""How long a person waits for `import viewalign` and `viewalign --help`, each in a fresh process.

python benchmarks/imports.py [--repeats 5]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

SECONDS = 2.0
"""The issue's limit."""


def seconds(command: list[str], repeats: int) -> float:
    """Return the median time of a process."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    cases = {"import": ["-c", "import viewalign"], "help": ["-m", "viewalign", "--help"]}
    taken = {name: seconds(command, repeats) for name, command in cases.items()}
    for name, value in taken.items():
        print(f"{name}: {value:.2f} s")
    print(json.dumps({"name": "imports", "ratio": round(max(taken.values()) / SECONDS, 3), "target": 1.0, **taken}))


if __name__ == "__main__":
    main()
