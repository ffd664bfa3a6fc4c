#!/usr/bin/env bash
# All that wants to be known of a GPU, in at most eight minutes: see gpu.py, whose options these are.
#   benchmarks/cuda.sh --out results.json          on a GPU
#   benchmarks/cuda.sh --device cpu --tiny         as a test of the script, in under a minute of a processor
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" THP_MEM_ALLOC_ENABLE=1 PYTHONUNBUFFERED=1 PYTHONHASHSEED=0
exec "${PYTHON:-python}" benchmarks/gpu.py "$@"
