import random,collections,sys,time
from switchkd_cli.playground.world import scenes
from switchkd_cli.playground.text.facts import STATEMENTS
N=int(sys.argv[1]); t=time.time()
train=collections.defaultdict(lambda:collections.defaultdict(lambda:[0,0]))
S=list(scenes('train',N,5)); print(time.time()-t)
def gather(S,seed):
    out=[]
    for sc in S:
        rng=random.Random(seed+sc.id)
        for k,f in STATEMENTS.items():
            truth=rng.random()<.5
            x=f(sc,rng,truth)
            if x is None: continue
            out.append((k,x,truth))
    return out
h=len(S)*4//5
for k,x,tr in gather(S[:h],'a'): train[k][x][tr]+=1
r=collections.defaultdict(list)
for k,x,tr in gather(S[h:],'b'):
    n,y=train[k][x]; r[k].append((y>n)==tr if y!=n else .5)
for k in r: print(k,len(r[k]),round(100*sum(r[k])/len(r[k]),1), len(train[k]))
