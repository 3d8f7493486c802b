#!/bin/bash
# run.sh NAME CPU ROWS overrides
N=$1; CPU=$2; ROWS=$3; shift 3
cd /work/scratch/w/q; export PYTHONPATH=/work/scratch/code1 OMP_NUM_THREADS=1
exec taskset -c $CPU /tmp/venv/bin/python -m switchkd_cli ablate ./dev.yaml --rows $ROWS --seeds 1 --jobs 1 seed=0 --out runs/$N "$@" > log.$N 2>&1
