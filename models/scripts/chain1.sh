cd /work/scratch/world/f23; export CODE=/work/scratch/world/code2
while pgrep -f "reader.yaml --row large" >/dev/null; do sleep 3; done
../go.sh language large 1; ../go.sh teacher large 1
