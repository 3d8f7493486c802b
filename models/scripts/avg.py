import json,sys
w=int(sys.argv[1])
for f in sys.argv[2:]:
    L={}
    for l in open(f):
        d=json.loads(l)
        if 'loss' in d: L.setdefault(d['stage'],[]).append(d['loss'])
    for s,v in L.items(): print(f.split('runs/')[-1].split('/seed')[0],s,[round(sum(v[i:i+w])/len(v[i:i+w]),2) for i in range(0,len(v),w)])
