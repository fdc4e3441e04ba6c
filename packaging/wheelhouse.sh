#!/bin/sh
# Collect all wheels for a machine without internet: sh packaging/wheelhouse.sh FOLDER [PYTHON]
# Run it on a machine with the same system and the same Python version. Then, on the other machine:
#   python -m pip install --no-index --find-links FOLDER -r FOLDER/requirements.lock viewalign
set -eu
folder=${1:?name a folder for the wheels}
python=${2:-python3}
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$folder"
"$python" -m pip wheel --quiet --wheel-dir "$folder" -r "$root/requirements.lock"
"$python" -m pip wheel --quiet --wheel-dir "$folder" --no-deps --no-build-isolation "$root" ||
  "$python" -m pip wheel --quiet --wheel-dir "$folder" --no-deps "$root"
cp "$root/requirements.lock" "$folder"
echo "$(ls "$folder" | grep -c '\.whl$') wheels in $folder"
