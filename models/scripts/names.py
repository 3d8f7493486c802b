import sys,random,collections,torch
torch.set_num_threads(1)
from switchkd_cli.engine.build import load
from switchkd_cli.playground.world import scenes,draw,RANK
from switchkd_cli.playground.text.captions import caption
m=load(sys.argv[1]); N=int(sys.argv[2]); tok=m.processor.tokenizer; model=m.model.eval()
res=collections.defaultdict(list)
S=list(scenes('validation',N,78))
with torch.no_grad():
  for i in range(0,N,50):
    b=S[i:i+50]; seqs=[];st=[]
    for sc in b:
        p=tok('<image>'*36+'<|user|>Describe the image.<|assistant|>',add_special_tokens=False).input_ids
        s=tok(caption(sc,random.Random(1)),add_special_tokens=False).input_ids; seqs.append(p+s); st.append(len(p))
    L=max(map(len,seqs)); ids=torch.full((len(b),L),0); mask=torch.zeros(len(b),L,dtype=torch.long)
    for j,s in enumerate(seqs): ids[j,:len(s)]=torch.tensor(s); mask[j,:len(s)]=1
    px=torch.stack([m.processor.image_processor(images=draw(sc),return_tensors='pt')['pixel_values'][0] for sc in b])
    out=model(input_ids=ids,attention_mask=mask,pixel_values=px).logits.argmax(-1)
    for j in range(len(b)):
        toks=tok.convert_ids_to_tokens(seqs[j])
        for t in range(st[j],len(seqs[j])):
            w=toks[t].lstrip('▁'); ok=(out[j,t-1]==ids[j,t]).item()
            if w.isdigit(): res['digit'].append(ok)
            elif w in RANK:
                r=RANK[w]; res['names'].append(ok); res['16' if r<=16 else '64' if r<=64 else '200' if r<=200 else 'rest'].append(ok)
print({k:(round(100*sum(v)/len(v)),len(v)) for k,v in res.items()})
