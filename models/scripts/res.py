import json,sys,glob
rows=[]
for d in sys.argv[1:]:
    for f in sorted(glob.glob(d+'/**/results.json',recursive=True)):
        r=json.load(open(f)); sc=r.get('scores') or r.get('benchmarks') or r
        if not rows: print(sorted(r)[:20])
        out={}
        for k,v in (sc.items() if isinstance(sc,dict) else []):
            out[k]=v.get('score') if isinstance(v,dict) else v
        rows.append(1); vals=[v for v in out.values() if isinstance(v,(int,float))]
        print(f.split('runs/')[1][:40].ljust(40),{k[:7]:round(v,1) for k,v in out.items() if isinstance(v,(int,float))}, round(sum(vals)/max(1,len(vals)),1))
