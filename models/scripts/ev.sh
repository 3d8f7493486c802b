#!/bin/bash
# ev.sh MODEL CPU [split]
cd /work/scratch/w; export PYTHONPATH=/work/scratch/code5 OMP_NUM_THREADS=1
taskset -c $2 /tmp/venv/bin/python -m switchkd_cli eval --model $1 --benchmarks mme,mmbench_en_dev,mmbench_cn_dev,vqav2_val,gqa,scienceqa_img,mmmu_val,textvqa_val,vizwiz_vqa_val,pope --world playground --split ${3:-validation} --items 400 --out /work/scratch/w/evals 2>&1 | grep -v "^note\|warning" | tail -25
