while true; do
for p in $(pgrep -f "pytest|tvtry|fake_engine|walk|switchkd|/tmp/families|longer.yaml|mypy|choose.yaml|pip install|make setup|sys.stdin.readline|n 2 --dist"); do
  c="$(tr '\0' ' ' </proc/$p/cmdline 2>/dev/null) $(readlink /proc/$p/cwd 2>/dev/null)"
  case "$c" in
    */tmp/families*|*wt/families*|*tests/models/test_stock*) v=15;;
    *longer.yaml*) v=10;;
    *) v=-5;;
  esac
  echo $v > /proc/$p/autogroup 2>/dev/null
done; sleep 10; done
