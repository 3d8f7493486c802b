"""lab.py MODEL N [text]: share of drills answered right (teacher-forced argmax on all answer tokens), by kind."""
import sys,random,collections,torch
torch.set_num_threads(1)
from switchkd_cli.engine.build import load
from switchkd_cli.playground.world import scenes,draw,RANK
from switchkd_cli.playground.text import drills,lists
from switchkd_cli.playground.text.captions import caption
from switchkd_cli.playground.text.questions import ask,suits
from switchkd_cli.playground.text.prompts import prompt
from switchkd_cli.playground.text.words import STYLES
m=load(sys.argv[1]); N=int(sys.argv[2]); text=len(sys.argv)>3
tok=m.inputs.processor.tokenizer; model=m.model.eval(); dev='cpu'
kinds={d.__name__:d for d in drills.DRILLS if d.__name__!='question_turn'}
for s in STYLES:
    kinds[s]=(lambda sc,rng,l=None,s=s:(lambda q:(prompt(q),q.answer,q.kind))(ask(sc,s,rng)) if suits(sc,s) else None)
items=[]
for sc in scenes('validation',N,77):
    rng=random.Random('lab'+sc.id)
    for k,f in kinds.items():
        t=f(sc,rng,"en")
        if t is None: continue
        items.append((k,sc,*t[:2],t[2] if len(t)>2 else ''))
img_id=tok.convert_tokens_to_ids('<image>'); nimg=m.model.config.image_seq_length if hasattr(m.model.config,'image_seq_length') else 36
pix={}
def pixels(sc):
    if sc.id not in pix: pix[sc.id]=m.inputs.processor.image_processor(images=draw(sc),return_tensors='pt')['pixel_values'][0]
    return pix[sc.id]
res=collections.defaultdict(list); sub=collections.defaultdict(list)
with torch.no_grad():
    for i in range(0,len(items),64):
        b=items[i:i+64]; seqs=[];starts=[]
        for k,sc,q,a,_ in b:
            pre=(f'<|user|>{caption(sc,random.Random(sc.id))}\n{q}<|assistant|>' if text else '<image>'*nimg+f'<|user|>{q}<|assistant|>')
            p=tok(pre,add_special_tokens=False).input_ids; s=tok(a+'<|end|>',add_special_tokens=False).input_ids
            seqs.append(p+s); starts.append(len(p))
        L=max(map(len,seqs)); ids=torch.full((len(b),L),tok.pad_token_id); mask=torch.zeros(len(b),L,dtype=torch.long)
        for j,s in enumerate(seqs): ids[j,:len(s)]=torch.tensor(s); mask[j,:len(s)]=1
        kw={} if text else {'pixel_values':torch.stack([pixels(sc) for _,sc,*_ in b]).to(model.dtype)}
        out=model(input_ids=ids,attention_mask=mask,**kw).logits.argmax(-1)
        for j,(k,sc,q,a,kind) in enumerate(b):
            s=starts[j]; n=len(seqs[j]); good=out[j,s-1:n-1]==ids[j,s:n]
            res[k].append(good.all().item()); sub[k].append(good[:-1].float().mean().item() if n-s>1 else 1.)
            if kind: sub[k+':'+kind].append(good.all().item())
for k in res: print(f'{k:20s} all {100*sum(res[k])/len(res[k]):5.1f}  tokens {100*sum(sub[k])/len(sub[k]):5.1f}', '  '.join(f"{x.split(':')[1]} {100*sum(v)/len(v):.0f}({len(v)})" for x,v in sub.items() if x.startswith(k+':')))
