cd /work/scratch/world/f25; export CODE=/work/scratch/world/code4
while pgrep -f "study.yaml --row base" >/dev/null; do sleep 3; done
mkdir -p runs/reader/base; cp -r runs/study/base/seed0 runs/reader/base/
../go.sh language base 0
