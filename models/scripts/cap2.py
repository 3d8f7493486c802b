import sys,random,torch,re,collections
torch.set_num_threads(1)
from switchkd_cli.engine.build import load
from switchkd_cli.playground.world import scenes,draw,COLOURS
m=load(sys.argv[1]); tok=m.processor.tokenizer; r=collections.Counter()
for sc in scenes('validation',80,77):
    pix=m.processor.image_processor(images=draw(sc),return_tensors='pt')['pixel_values']
    ids=tok('<image>'*36+'<|user|>Describe the image.<|assistant|>',add_special_tokens=False,return_tensors='pt').input_ids
    out=tok.decode(m.model.generate(input_ids=ids,attention_mask=torch.ones_like(ids),pixel_values=pix,max_new_tokens=40,do_sample=False)[0,ids.shape[1]:])
    c=[w for w in COLOURS if re.search(rf'\b{w}\b',out)]
    r['colour said']+=bool(c); r['colour right']+= c==[sc.background]
    for it in sc.items:
        nm = it.name if it in sc.things else f'number {it.name}'
        k='thing' if it in sc.things else 'digit'
        r[k]+=1; r[k+' right']+= f'{nm} at the {it.place}' in out
print(dict(r)); print(out)
