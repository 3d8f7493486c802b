import sys,random,collections,torch
torch.set_num_threads(1)
from switchkd_cli.engine.build import load
from switchkd_cli.playground.text import lists
m=load(sys.argv[1]); N=int(sys.argv[2]); tok=m.processor.tokenizer; model=m.model.eval()
items=[]
for i in range(N):
    rng=random.Random(f'z{i}')
    turns=lists.list_row(rng,6); text=''
    for q,a in turns:
        text+=f'<|user|>{q}<|assistant|>'
        k=('checked' if (('Check' in q or '检查' in q) and 'A. ' in q) else 'roll' if q.split('\n')[-1] not in '' and ('Check' in q or '检查' in q) else 'shown' if ('Which of these' in q or '有哪一个' in q) else 'again' if ('Say the options' in q or '说出选项' in q) else 'letters')
        if k=='shown': k+='-letter' if len(a)==1 and a in 'ABCD' else '-name'
        items.append((k,text,a)); text+=f'{a}<|end|>'
res=collections.defaultdict(list);sub=collections.defaultdict(list)
with torch.no_grad():
    for k,p,a in items:
        p=tok(p,add_special_tokens=False).input_ids; s=tok(a+'<|end|>',add_special_tokens=False).input_ids
        ids=torch.tensor([p+s]); out=model(input_ids=ids).logits.argmax(-1)[0]
        good=out[len(p)-1:-1]==ids[0,len(p):]
        res[k].append(good.all().item()); sub[k].append(good[:-1].float().mean().item())
        if k in ('roll','checked'):
            w=tok.convert_ids_to_tokens(s)
            for j,t in enumerate(w):
                if t in ('▁yes','▁no','有','没有'): sub['yesno-'+k].append(good[j].item()); res['yesno-'+k].append(good[j].item())
for k in res: print(k,len(res[k]),'all %.1f tokens %.1f'%(100*sum(res[k])/len(res[k]),100*sum(sub[k])/len(sub[k])))
