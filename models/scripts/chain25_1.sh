cd /work/scratch/world/f25; export CODE=/work/scratch/world/code4
while pgrep -f "study.yaml --row large" >/dev/null; do sleep 3; done
mkdir -p runs/reader/large; cp -r runs/study/large/seed0 runs/reader/large/
../go.sh language large 1 stages.see.steps=400 stages.drill.steps=1200
../go.sh teacher large 1 stages.drill.steps=800 stages.instruct.steps=500
