"""Everything about viewalign on one GPU, as one JSON file and Markdown tables; docs/gpu.md is its manual.

`python benchmarks/gpu/check.py --out FOLDER [--parts NAME …] [--budget SECONDS]`

Parts run in order of what they are worth. One that fails is recorded and the next one runs; one for which no time is
left is skipped. Both files are written after every part, so that a check that is cut off keeps what it has. The last
line is one JSON object; `ratio` is the worst value ÷ limit of all checks, and 99 where a part failed.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import math
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
if importlib.util.find_spec("SimpleITK") is None:
    sys.path.append(str(HERE / "stubs"))

import torch  # noqa: E402
from collectives import collectives  # noqa: E402
from facts import facts  # noqa: E402
from memory import out_of_memory  # noqa: E402
from parity import parity  # noqa: E402
from reading import reading  # noqa: E402
from runs import small_runs  # noqa: E402
from session import Facts, Part, Session  # noqa: E402
from steps import compiled, plain, variants  # noqa: E402
from table import markdown  # noqa: E402

import viewalign  # noqa: E402
from finetuning import finetuning  # noqa: E402
from viewalign.utils.io import atomic_write  # noqa: E402

PARTS: dict[str, tuple[Part, float]] = {
    "facts": (facts, 10),
    "resenc-l": (plain("cva-resenc-l"), 35),
    "primus-m": (plain("cva-primus-m"), 35),
    "resenc-xs-runs": (partial(small_runs, "cva-resenc-xs"), 25),
    "primus-xs-runs": (partial(small_runs, "cva-primus-xs"), 25),
    "reading": (reading, 35),
    "resenc-l-compiled": (compiled("cva-resenc-l"), 45),
    "primus-m-compiled": (compiled("cva-primus-m"), 45),
    "parity": (parity, 45),
    "collectives": (collectives, 25),
    "out-of-memory": (out_of_memory, 30),
    "variants": (variants, 45),
    "finetuning": (finetuning, 60),
}
"""Parts by name, each with the seconds that we expect of an H100; no part has run on one yet."""
FAILED = 99.0


def main() -> None:
    """Run the parts and print one JSON object last."""
    arguments = _arguments()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no GPU here (`viewalign doctor` says why). Without one: --device cpu --tiny.")
    arguments.out.mkdir(parents=True, exist_ok=True)
    # torch and its friends warn each other of their own deprecations.
    warnings.filterwarnings("ignore", category=FutureWarning)
    report = _begin(arguments)
    with tempfile.TemporaryDirectory() as folder:
        session = Session(device, arguments.tiny, arguments.budget, Path(folder))
        for name in arguments.parts:
            report["parts"][name] = _run(session, name)
            report["seconds"] = round(time.monotonic() - session.begun, 1)
            _write(report, arguments.out)
    failed = [name for name, part in report["parts"].items() if "error" in part]
    last = {"name": "gpu", "ratio": _ratio(report, bool(failed)), "target": 1.0}
    print(json.dumps({**last, "seconds": report["seconds"], "failed": failed, "checks": report["checks"]}))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), help="folder for gpu.json and gpu.md")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--budget", type=float, default=340.0, help="seconds for all parts")
    parser.add_argument("--tiny", action="store_true", help="small networks in place of the large ones, for a CPU")
    parser.add_argument("--commit", default="", help="of the code, where it is a copy without git's folder")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), metavar="NAME")
    return parser.parse_args()


def _begin(arguments: argparse.Namespace) -> Facts:
    return {
        "name": "gpu",
        "date": datetime.date.today().isoformat(),
        "command": _command(arguments),
        "commit": arguments.commit or _commit(),
        "viewalign": viewalign.__version__,
        "torch": torch.__version__,
        "device": arguments.device,
        "tiny": arguments.tiny,
        "parts": {},
        "checks": [],
    }


def _command(arguments: argparse.Namespace) -> str:
    """Return the command as it can be repeated elsewhere, without the folder."""
    words = ["python benchmarks/gpu/check.py"]
    words += ["--device", "cpu"] if arguments.device == "cpu" else []
    words += ["--tiny"] if arguments.tiny else []
    words += ["--parts", *arguments.parts] if arguments.parts != list(PARTS) else []
    return " ".join(words)


def _commit() -> str:
    """Return the commit of the code that is run, with a mark where it was changed; "unknown" without git."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _run(session: Session, name: str) -> Facts:
    """Run one part; what it raises is recorded."""
    part, expected = PARTS[name]
    # A part may take less than expected, and each writes what it has: only with hardly any time left is it skipped.
    if session.left() < expected / 3:
        return {"skipped": f"{session.left():.0f} s left of the budget"}
    begin = time.monotonic()
    print(f"{name} …", file=sys.stderr, flush=True)
    try:
        session.begin_part()
        result = part(session)
    except Exception as problem:
        trace = traceback.format_exc()
        result = {"error": f"{type(problem).__name__}: {problem}"[:600], "trace": trace[-3000:]}
        print(trace, file=sys.stderr)
    result["part_s"] = round(time.monotonic() - begin, 1)
    return result


def _write(report: Facts, out: Path) -> None:
    report["checks"] = [
        {"part": name, **row} for name, part in report["parts"].items() for row in part.get("checks", [])
    ]
    with atomic_write(out / "gpu.json") as partial_file:
        partial_file.write_text(json.dumps(report, indent=1, default=str) + "\n")
    with atomic_write(out / "gpu.md") as partial_file:
        partial_file.write_text(markdown(report))


def _ratio(report: Facts, failed: bool) -> float:
    """Return the worst value ÷ limit; a limit of 0 is kept or missed altogether."""
    ratios = [FAILED] if failed else []
    for row in report["checks"]:
        value, limit = row["value"], row["limit"]
        missed = math.isnan(value) or (limit == 0 and value != 0)
        ratios.append(FAILED if missed else value / limit if limit else 0.0)
    return round(max(ratios, default=0.0), 4)


if __name__ == "__main__":
    main()
