#!/bin/bash
# eval.sh MODEL_FOLDER CPU [items]: ten sets on the validation split
cd /work/scratch/world/f18; export PYTHONPATH=/work/scratch/world/code20 OMP_NUM_THREADS=1
taskset -c $2 /tmp/venv/bin/python -m switchkd_cli eval --model $1 --benchmarks mme,mmbench_en_dev,mmbench_cn_dev,vqav2_val,gqa,scienceqa_img,mmmu_val,textvqa_val,vizwiz_vqa_val,pope --split validation --items ${3:-200} --out /work/scratch/world/evals 2>&1 | grep -v "^note\|warning"
