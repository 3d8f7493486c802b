cd /work/scratch/w/q
while [ -d /proc/$1 ]; do sleep 3; done
export OMP_NUM_THREADS=1 PYTHONPATH=/work/scratch/code2
for s in 1 2 3 4 5; do for row in switch-kd sft; do for split in test hard unseen; do
  B=mmvp,swap,captions; [ $split != test ] && B=$B,mme,mmbench_en_dev,mmbench_cn_dev,vqav2_val,gqa,scienceqa_img,mmmu_val,textvqa_val,vizwiz_vqa_val,pope
  taskset -c 0 /tmp/venv/bin/python -m switchkd_cli eval --model runs/five/quickstart/$row/seed$s --benchmarks $B --world playground --items 200 --split $split --out runs/extra > ex.$row.$s.$split.log 2>&1
done; done; done
for split in test hard unseen; do
  B=mmvp,swap,captions; [ $split != test ] && B=$B,mme,mmbench_en_dev,mmbench_cn_dev,vqav2_val,gqa,scienceqa_img,mmmu_val,textvqa_val,vizwiz_vqa_val,pope
  taskset -c 0 /tmp/venv/bin/python -m switchkd_cli eval --model playground:teacher-small --benchmarks $B --world playground --items 200 --split $split --out runs/extra > ex.teacher.0.$split.log 2>&1
done
