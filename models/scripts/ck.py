import sys,torch,glob,os
sys.argv=[sys.argv[0]]+sys.argv[1:]
from switchkd_cli.engine.training.state_files import read_state
from switchkd_cli.engine import build
ck=sorted(glob.glob(sys.argv[1]+'/checkpoints/*'),key=os.path.getmtime)[-1]
from pathlib import Path
st=read_state(Path(ck))['weights']
print(ck,len(st),list(st)[:2])
base=sys.argv[2]
m=build.load(base)
sd={k.removeprefix('student.'):v for k,v in st.items()}
r=m.load_state_dict(sd,strict=False); print(len(r.missing_keys),len(r.unexpected_keys),r.unexpected_keys[:2])
m.save(Path('/tmp/ckmodel'))
