#!/bin/sh
# What a GPU is for, measured on one.
#
#     benchmarks/gpu.sh FOLDER           FOLDER: photographs to train on, a folder for each class, some thousands of them
#     benchmarks/gpu.sh --tiny FOLDER    the same commands at a size that a CPU manages, to see that they run
#
# PYTHON names the interpreter that has the package (python unless set).
#
# 1. ResNet-50 -> ResNet-18 at 224: images/s and memory, live, recorded and compiled, against a plain PyTorch loop.
# 2. The exact neighbor graph of 1.28 million rows of width 2048 (ImageNet-1k behind a ResNet-50): seconds.
# 3. The same run by one process and by two: how far the weights are apart. Needs two GPUs.
set -eu

python=${PYTHON:-python}
here=$(cd "$(dirname "$0")" && pwd)
tiny=false
if [ "${1:-}" = --tiny ]; then
    tiny=true
    shift
fi
photographs=${1:?"Give the folder of photographs: benchmarks/gpu.sh [--tiny] FOLDER"}
gpus=$("$python" -c "import torch; print(torch.cuda.device_count())")

if $tiny; then
    echo "Tiny, on the CPU: these figures say that the commands run, and nothing of any GPU."
    device=cpu
    step="--teacher mobilenetv3_small_050 --student mobilenetv3_small_050 --batch-size 4 --workers 0 --steps 3 --rounds 1"
    graph="--rows 500 --width 32"
    # Not "compiled": for a CPU, timm's smallest transformer (test_vit, as teacher and student) took 1.5 minutes of processor
    # time, nearly all of it the C++ compiler's, and convolutional networks take more. It runs: benchmarks/peers.py
    # --teacher test_vit --student test_vit --sides compiled.
    sides="plain live recorded"
elif [ "$gpus" = 0 ]; then
    echo "torch sees no CUDA GPU here, and nothing else is worth measuring by this. --tiny shows that the commands run." >&2
    exit 1
else
    device=cuda
    "$python" -c "import torch; print(torch.cuda.get_device_name(), 'x', torch.cuda.device_count(), 'torch', torch.__version__)"
    step="--teacher resnet50 --student resnet18 --batch-size 256 --workers $(($(nproc) - 1)) --steps 60 --rounds 3"
    graph="--rows 1280000 --width 2048"
    sides="plain live recorded compiled"
fi

echo "== 1. The training step at 224 px"
# shellcheck disable=SC2086 - these are several arguments
"$python" "$here/peers.py" --data "$photographs" --device $device --sides $sides $step

echo "== 2. The exact graph"
# shellcheck disable=SC2086
"$python" "$here/graph.py" $graph --ways exact --device $device

echo "== 3. Two processes against one"
if [ $device = cuda ] && [ "$gpus" -lt 2 ]; then
    echo "Not measured: it needs two GPUs, and torch sees $gpus."
    exit 0
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# A teacher that costs nothing and is not random, and a student without BatchNorm, whose statistics are each process' own.
cat > "$folder/thumbnail.py" <<'PYTHON'
import torch
from torch import nn


class ToyEncoder(nn.Module):
    contract = {"size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}

    def forward(self, x):
        small = nn.functional.adaptive_avg_pool2d(x.mean(1, keepdim=True), 5).flatten(1)
        return small - small.mean(1, keepdim=True)


def student():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 64, 4, 4), nn.GELU(), nn.Conv2d(64, 128, 2, 2), nn.GELU(), nn.Flatten())
PYTHON
export PYTHONPATH="$folder${PYTHONPATH:+:$PYTHONPATH}"
run="-m understudy train --data digits:train --limit 320 --holdout 0 --probes 0 --workers 0 --device $device --precision fp32
    --teacher-precision fp32 --batch-size 64 --passes 2 --teacher python:thumbnail:ToyEncoder --student python:thumbnail:student --head-hidden 64
    --image-size 32 --neighbors.k 3 --optimizer.name sgd --optimizer.lr 0.1 --store $folder/store"
# shellcheck disable=SC2086
"$python" $run --out "$folder/one"
# shellcheck disable=SC2086
"$python" -m torch.distributed.run --standalone --nproc-per-node 2 $run --out "$folder/two"
"$python" - "$folder" <<'PYTHON'
import sys

from safetensors.numpy import load_file

one, two = (load_file(f"{sys.argv[1]}/{name}/student.safetensors") for name in ("one", "two"))
apart = max(float(abs(one[name].astype("float64") - two[name]).max()) for name in one)
largest = max(float(abs(value).max()) for value in one.values())
print(f"weights of one process and of two: {apart:.2e} apart at most, the largest weight is {largest:.3g}")
sys.exit(apart > 1e-3 * largest)
PYTHON
