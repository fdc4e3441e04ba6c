"""Frozen voxel probe on the hippocampus crops of the Medical Segmentation Decathlon: give it a run.

Ten labelled crops of ids below 250 to learn, sixty of ids 250-319 to test; the run's encoder beside the same network
untrained and beside plain intensities. Writes RUN/probe.json, which the run's page shows. The data are looked for in
$VIEWALIGN_SHARED/data/hippocampus or ../shared/data/hippocampus.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
from pathlib import Path

import numpy as np
import torch

from viewalign.data.catalogue import write_catalogue
from viewalign.data.indexing import index_sources
from viewalign.data.prepare import prepare_catalogue
from viewalign.data.preprocessing import prepare_volume
from viewalign.data.readers.files import read_volume
from viewalign.data.settings import PrepareSettings
from viewalign.evaluation.voxel_features import EncoderFeatures
from viewalign.evaluation.voxel_probe import Case, compare
from viewalign.recipes.loading import load
from viewalign.training.run import pretrain
from viewalign.utils.io import write_json
from viewalign.weights.encoder import build_untrained, load_encoder
from viewalign.weights.run_folder import RunFolder

LEARN, TEST = 10, 60


def case_of(image: Path, labels: Path) -> Case:
    """Read one crop and its label map, prepared as the store's images are."""
    volume = read_volume(image)
    truth = np.rint(read_volume(labels).array).astype(np.uint8)
    prepared = prepare_volume(volume, PrepareSettings(), {"labels": truth})
    return Case(image.name, np.asarray(prepared.array, dtype=np.float32), prepared.masks["labels"])


def choose(data: Path) -> tuple[list[Case], list[Case]]:
    """Take evenly spread ids below 250 to learn, and ids 250-319 to test."""
    images = {int(re.findall(r"\d+", path.name)[0]): path for path in (data / "images").glob("*.nii.gz")}
    low, high = sorted(k for k in images if k < 250), sorted(k for k in images if 250 <= k < 320)
    learn = [low[i] for i in np.linspace(0, len(low) - 1, LEARN).round().astype(int)]
    cases = [[case_of(images[k], data / "labels" / images[k].name) for k in ids] for ids in (learn, high[:TEST])]
    return cases[0], cases[1]


def prepare_crops(data: Path, folder: Path) -> Path:
    """Prepare the crops of ids below 250, without labels, and return the store."""
    patterns = [str(data / "images" / f"hippocampus_{start}*") for start in ("0", "1", "2[0-4]")]
    index = index_sources(patterns)
    folder.mkdir(parents=True, exist_ok=True)
    write_catalogue(index.collection, folder / "catalogue.json")
    prepare_catalogue(folder / "catalogue.json", folder / "store")
    return folder / "store"


def pretrain_on(data: Path, folder: Path) -> Path:
    """Pretrain `cva-resenc-xs` on these crops and return the run's folder."""
    recipe = load("cva-resenc-xs", [f"data={prepare_crops(data, folder)}", f"out={folder / 'run'}"])
    return pretrain(recipe).folder.root


def main() -> None:
    """Run the probe and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", help="without one, a small ResEnc is pretrained first")
    shared = Path(os.environ.get("VIEWALIGN_SHARED", Path(__file__).parents[2] / "shared"))
    parser.add_argument("--data", type=Path, default=shared / "data" / "hippocampus")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        print(json.dumps({"name": "hippocampus_probe", "ratio": None, "target": 1.0, "skipped": "no hippocampus data"}))
        return
    arguments.run = arguments.run or pretrain_on(arguments.data, Path(tempfile.mkdtemp()))
    torch.set_grad_enabled(False)
    learn, test = choose(arguments.data)
    recipe = RunFolder(arguments.run).recipe()
    features = [EncoderFeatures(one) for one in (load_encoder(arguments.run), build_untrained(recipe, recipe.seed))]
    result = compare(*features, learn, test, "anterior and posterior hippocampus", on_part=print)
    write_json(arguments.run / "probe.json", result)
    for name in ("pretrained", "untrained", "intensity"):
        dice = result.get(name, result["baselines"].get(name))
        print(f"{name:11s} Dice {dice:.3f}  95 % interval {result['interval'].get(name)}")
    print("gain", result["gain"])
    ratio = result["untrained"] / result["pretrained"]
    print(json.dumps({"name": "hippocampus_probe", "ratio": round(ratio, 4), "target": 1.0}))


if __name__ == "__main__":
    main()
