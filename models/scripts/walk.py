import re,subprocess,os,time
from pathlib import Path
T=Path('/tmp/walk/docs/tutorial.md').read_text()
d=Path('/tmp/walkmine'); subprocess.run(['rm','-rf',str(d)]); d.mkdir()
env={**os.environ,'PATH':'/tmp/walk/.venv/bin:'+os.environ['PATH']}; env.pop('PYTHONPATH',None)
for b in re.finditer(r"^```(\w*)\n(.*?)^```$",T,re.S|re.M):
    lang,c=b.groups()
    if lang: (d/re.findall(r"Save (?:it|this) as\s+`([\w.]+)`",T[:b.start()])[-1]).write_text(c); continue
    if c.startswith('mine/'): continue
    for cmd in c.splitlines():
        t=time.time(); r=subprocess.run(cmd,shell=True,cwd=d,env=env,capture_output=True,text=True)
        print('$',cmd,f'   [{time.time()-t:.0f} s, exit {r.returncode}]'); print(r.stdout); print(r.stderr[-1500:] if r.returncode else '',flush=True)
