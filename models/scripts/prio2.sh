while true; do
for p in $(pgrep -f "pytest|switchkd_cli|mypy|ruff"); do
  c="$(tr '\0' ' ' </proc/$p/cmdline 2>/dev/null) $(readlink /proc/$p/cwd 2>/dev/null)"
  case "$c" in
    */work/wt/fam*|*/tmp/fam*|*/work/wt/blank*|*/tmp/blank*|*/work/wt/pair*|*/tmp/pair*) v=2;;
    */work/scratch/w*) v=-15;;
    *) v=-5;;
  esac
  echo $v > /proc/$p/autogroup 2>/dev/null
done; sleep 5; done
