"""remap.py OLD_MODEL NEW_TOKENIZER_FOLDER OUT: rows of embeddings and head by token, for a tokenizer with further words."""
import sys,json,shutil,torch
from pathlib import Path
from safetensors.torch import load_file,save_file
from transformers import AutoTokenizer
old,new,out=map(Path,sys.argv[1:4])
a=AutoTokenizer.from_pretrained(old); b=AutoTokenizer.from_pretrained(new)
va=a.get_vocab(); vb=sorted(b.get_vocab().items(),key=lambda x:x[1])
w=load_file(old/'model.safetensors'); n0=len(va)
for k,t in w.items():
    if t.dim()==2 and len(t)==n0 and ('embed_tokens' in k or 'lm_head' in k):
        mean=t.float().mean(0).to(t.dtype)
        w[k]=torch.stack([t[va[p]] if p in va else mean for p,_ in vb]).contiguous(); print(k,t.shape,w[k].shape)
out.mkdir(parents=True,exist_ok=True)
for f in old.iterdir():
    if f.name!='model.safetensors': shutil.copy(f,out/f.name)
for f in new.iterdir():
    if f.name in ('tokenizer.json',): shutil.copy(f,out/f.name)
save_file(w,out/'model.safetensors',metadata={'format':'pt'})
for name in ('config.json','generation_config.json'):
    c=json.loads((out/name).read_text())
    def walk(x):
        for k,v in x.items():
            if isinstance(v,dict): walk(v)
            elif k=='vocab_size' and v==n0: x[k]=len(vb)
            elif k.endswith('token_id') or k.endswith('token_index') or k=='image_token_id':
                if isinstance(v,int): x[k]=b.get_vocab()[a.convert_ids_to_tokens(v)]
    walk(c); (out/name).write_text(json.dumps(c,indent=2))
