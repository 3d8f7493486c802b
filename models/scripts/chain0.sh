cd /work/scratch/world/f23; export CODE=/work/scratch/world/code2
while pgrep -f "reader.yaml --row base" >/dev/null; do sleep 3; done
../go.sh language base 0; ../go.sh teacher small 0
