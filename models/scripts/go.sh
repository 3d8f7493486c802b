#!/bin/bash
# go.sh RECIPE ROW CPU overrides...   (run in a folder with runs/)
R=$1; ROW=$2; CPU=$3; shift 3
export PYTHONPATH=${CODE:-/work/wt/world} OMP_NUM_THREADS=1
taskset -c $CPU /tmp/venv/bin/python -m switchkd_cli pretrain $PYTHONPATH/recipes/playground/$R.yaml --row $ROW "$@" > log.$R.$ROW 2>&1
