import ast, io, pathlib, tokenize, sys
total=0
for path in sorted(pathlib.Path(sys.argv[1]).rglob("*.py")):
    text=path.read_text(); docs=set()
    for n in ast.walk(ast.parse(text)):
        if isinstance(n,ast.Expr) and isinstance(n.value,ast.Constant) and isinstance(n.value.value,str): docs|=set(range(n.lineno,n.end_lineno+1))
    skip=(tokenize.COMMENT,tokenize.NL,tokenize.NEWLINE,tokenize.INDENT,tokenize.DEDENT,tokenize.ENDMARKER)
    c=len({t.start[0] for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type not in skip}-docs); total+=c
print(total)
