"""Exact against released geometry, and views turned together against views turned alone: a paired study.

`python benchmarks/geometry_study.py --out FOLDER [--seeds 8] [--steps 200] [--minutes 120]`

Four arms with the same network, recipe, steps and seeds are pretrained on the hippocampus crops of ids below 250,
without labels: `mae` (no alignment), `released` (geometry=latentcampus), `exact`, and `independent` (exact, every view
turned, scaled and mirrored alone). Each is judged frozen on ids 250-319: mean Dice of a linear voxel probe that learnt
from ten labelled crops, and retrieval of corresponding places between two views that are turned alone. What is done is
kept in FOLDER/results.jsonl and not done again. The last line is one JSON object; `ratio` is the probe's Dice of
`released` over that of `exact`. The data are looked for in $VIEWALIGN_SHARED/data/hippocampus or
../shared/data/hippocampus.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from pathlib import Path
from statistics import mean, stdev

import torch
from hippocampus_probe import choose, prepare_crops
from scipy.stats import t as student_t

from viewalign.recipes.loading import load
from viewalign.training.run import pretrain
from viewalign.transfer.encoder import Encoder, build_untrained, load_encoder
from viewalign.transfer.probe import Case, probe
from viewalign.transfer.retrieval import find_places
from viewalign.transfer.voxel_features import EncoderFeatures

ARMS = {
    "untrained": [],
    "mae": ["objectives.consistency_weight=0", "objectives.contrastive_weight=0"],
    "released": ["geometry=latentcampus"],
    "exact": ["geometry=exact"],
    "independent": ["geometry=exact", "views.independent=true", "views.p_rotation=1", "views.p_scale=1"],
}
COMMON = [
    "views.size=[24,32,32]",
    "batch=8",
    "validate.every=0",
    "log.health_every=100000",
    "log.tensorboard=false",
    "runtime.workers=0",
]
MEASURES = {"dice": "probe, mean Dice", "hit": "places found", "distance": "distance of the place found (voxels)"}


def judge(encoder: Encoder, learn: list[Case], test: list[Case]) -> dict[str, object]:
    """Judge a frozen encoder by the probe and by retrieval."""
    score = probe(EncoderFeatures(encoder), learn, test)
    places = find_places(encoder, [case.image for case in test], seed=1)
    return {
        "dice": score.dice,
        "hit": mean(places.hits),
        "distance": mean(places.distances),
        "chance": mean(places.chance),
        "dice_of_cases": [round(value, 5) for value in score.cases],
    }


def run_arm(arm: str, seed: int, store: Path, out: Path, options: list[str]) -> Encoder:
    """Pretrain one arm with one seed and return its encoder."""
    recipe = load("cva-resenc-xs", [*COMMON, *options, *ARMS[arm], f"seed={seed}", f"data={store}", f"out={out}"])
    if arm == "untrained":
        return build_untrained(recipe, seed)
    shutil.rmtree(out, ignore_errors=True)
    outcome = pretrain(recipe)
    if not outcome.finished:
        raise SystemExit(outcome.exit_code)
    return load_encoder(out)


def paired(rows: list[dict[str, object]], one: str, other: str, name: str) -> str:
    """Return the mean paired difference over seeds with its 95 % interval (Student's t)."""
    by = {(row["arm"], row["seed"]): float(str(row[name])) for row in rows}
    seeds = [seed for arm, seed in by if arm == one and (other, seed) in by]
    differences = [by[one, seed] - by[other, seed] for seed in seeds]
    if len(differences) < 2:
        return f"{one} - {other}: {differences}"
    half = student_t.ppf(0.975, len(differences) - 1) * stdev(differences) / len(differences) ** 0.5
    middle = mean(differences)
    return f"{one} - {other}: {middle:+.4f} ({middle - half:+.4f} to {middle + half:+.4f}; {len(differences)} seeds)"


def tell(rows: list[dict[str, object]]) -> None:
    """Print means of every arm and paired differences."""
    for name, title in MEASURES.items():
        print(f"\n{title}")
        for arm in ARMS:
            values = [float(str(row[name])) for row in rows if row["arm"] == arm]
            if values:
                spread = stdev(values) if len(values) > 1 else float("nan")
                print(f"  {arm:12s} {mean(values):.4f}  deviation over seeds {spread:.4f}  ({len(values)} seeds)")
        for one, other in (("exact", "released"), ("independent", "exact"), ("exact", "mae"), ("independent", "mae")):
            print("  " + paired(rows, one, other, name))


def main() -> None:
    """Run what is not done yet, within the time given, and print the outcome."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shared = Path(os.environ.get("VIEWALIGN_SHARED", Path(__file__).parents[2] / "shared"))
    parser.add_argument("--data", type=Path, default=shared / "data" / "hippocampus")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("options", nargs="*", help="further settings of every arm (key=value)")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        print(json.dumps({"name": "geometry_study", "ratio": None, "target": 1.0, "skipped": "no hippocampus data"}))
        return
    begin = time.monotonic()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    log = arguments.out / "results.jsonl"
    store = prepare_crops(arguments.data, arguments.out)
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    learn, test = choose(arguments.data)
    options = [f"steps={arguments.steps}", f"runtime.threads={arguments.threads}", *arguments.options]
    for seed in range(arguments.seeds):
        for arm in ARMS:
            if any(row["arm"] == arm and row["seed"] == seed for row in rows):
                continue
            if time.monotonic() - begin > 60 * arguments.minutes:
                break
            encoder = run_arm(arm, seed, store, arguments.out / arm, options)
            rows.append({"arm": arm, "seed": seed, **judge(encoder, learn, test)})
            with log.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    tell(rows)
    means = {arm: mean(float(row["dice"]) for row in rows if row["arm"] == arm) for arm in ("released", "exact")}
    print(json.dumps({"name": "geometry_study", "ratio": round(means["released"] / means["exact"], 4), "target": 1.0}))


if __name__ == "__main__":
    main()
