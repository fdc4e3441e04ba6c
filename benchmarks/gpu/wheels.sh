#!/bin/sh
# Download the wheels that viewalign needs beside torch, for a GPU machine without a network (19 MB, x86-64 Linux).
# Usage: benchmarks/gpu/wheels.sh [FOLDER, default .whl] [PYTHON VERSION of the GPU machine, default 3.12]
#
# Assumed to be there, as on most machines with torch: numpy, scipy, torchvision, einops, huggingface-hub, packaging,
# PyYAML, typer, rich, safetensors, tensorboard, jinja2, httpx, requests. `pip check` after the installation names what is missing.
# SimpleITK (53 MB) is left out: benchmarks/gpu/stubs stands in for it. timm is pinned because later versions cannot
# build a Primus with dynamic-network-architectures 0.4.4.
set -eu
out=${1:-.whl}
python=${2:-3.12}
mkdir -p "$out"
python3 -m pip download -q --no-deps --only-binary=:all: --python-version "$python" --implementation cp \
  --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_24_x86_64 \
  --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -d "$out" \
  pydantic==2.14.3 pydantic-core==2.50.4 annotated-types==0.8.0 typing-inspection==0.4.5 typing-extensions==4.16.0 \
  blosc2==4.14.1 ndindex==1.10.1 numexpr==2.14.2 msgpack==1.2.4 \
  dynamic-network-architectures==0.4.4 timm==1.0.22 lightning-fabric==2.6.6 lightning-utilities==0.15.3 \
  nibabel==5.4.2 pydicom==3.0.2
du -cb "$out"/*.whl | tail -1
