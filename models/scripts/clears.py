"""clears.py RUNS_FOLDER RECIPE ROW: each task: row minus majority, blind (points, 95 % over images), teacher minus row."""
import sys,glob
from pathlib import Path
from statistics import fmean
from switchkd_cli.report.stats.baselines import read_items,minus
from switchkd_cli.benchmarks import BENCHMARKS
runs,recipe,row=sys.argv[1:4]
ev=Path(glob.glob(f'{runs}/evaluations/*/teacher')[0]).parent
seeds=sorted(glob.glob(f'{runs}/{recipe}/{row}/seed*'))
n=0
for t in [p.stem for p in sorted((ev/'teacher/answers').glob('*.jsonl'))]:
    per=[read_items(Path(s,'answers',t+'.jsonl')) for s in seeds]
    mine={k:fmean(p[k] for p in per) for k in per[0]}
    b={w:read_items(ev/w/'answers'/(t+'.jsonl')) for w in ('majority','blind','teacher')}
    m,bl,te=(minus(mine,b['majority']),minus(mine,b['blind']),minus(b['teacher'],mine))
    n+= m.side==1 and bl.side==1
    print(f'{t:16s} minus majority {m}  minus blind {bl}  teacher minus it {te}', m.side,bl.side,te.side)
print('clears both on',n)
