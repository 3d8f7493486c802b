#!/bin/bash
# q.sh NAME ROWS CPU overrides... : one seed (0) on the validation split
N=$1; ROWS=$2; CPU=$3; shift 3
cd /work/scratch/w/q; export PYTHONPATH=${CODE:-/work/scratch/code2} OMP_NUM_THREADS=1
exec taskset -c $CPU /tmp/venv/bin/python -m switchkd_cli ablate ./dev.yaml --rows $ROWS --seeds 1 seed=0 --out runs/$N "$@" > log.$N 2>&1
