"""The exported chat templates in other Jinja engines: what each writes is what transformers writes.

minijinja is among the tests' requirements; @huggingface/jinja is run where node and the package are (`make test` puts
it into the environment's node_modules where npm can). llama.cpp's two engines, minja and the one of its own that came
after it, are in no package: both wrote every case below as transformers does when they were built by hand (minja
021c2293, and llama.cpp as in llama-cpp-python 0.3.36). What templates are made of is held to what was run there.
"""

import json
import os
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import jinja2
import pytest
from jinja2 import nodes

from switchkd_cli.engine.models.processors import IN_PARTS
from switchkd_cli.recipe.named_files import ASSETS
from switchkd_cli.registry import TEMPLATES, template
from tests.support import tiny_qwen

TEXTS = {name: IN_PARTS + template(name) for name in TEMPLATES}
TEXTS["playground"] = IN_PARTS + (ASSETS / "tokenizer" / "chat_template.jinja").read_text(encoding="utf-8")


def parts(*said: str | None) -> list[dict]:
    return [{"type": "image"} if text is None else {"type": "text", "text": text} for text in said]


TALKS = [
    [("user", parts(None, " What is it?\n"))],
    [("user", "<image>\nWhat?")],
    [("user", "<image> <image>\nWhat?"), ("assistant", "a dog"), ("user", " More? ")],
    [("system", "Short."), ("user", parts("What?")), ("assistant", parts(" x "))],
    [("user", 'What "é" \\ \' {{ x }}?'), ("assistant", "")],
    [("user", "<image>")],
]
CASES = [
    {
        "template": text,
        "messages": [{"role": role, "content": content} for role, content in talk],
        "add_generation_prompt": generation,
        "eos_token": "<|endoftext|>",
    }
    for text, talk, generation in product(TEXTS.values(), TALKS, (True, False))
]
BY_NODE = """
const { Template } = require("@huggingface/jinja");
const cases = JSON.parse(require("fs").readFileSync(0, "utf8"));
console.log(JSON.stringify(cases.map(({ template, ...told }) => new Template(template).render(told))));
"""


@pytest.fixture(scope="module")
def written() -> list[str]:
    """By transformers."""
    words = tiny_qwen.processor().tokenizer
    return [
        words.apply_chat_template(
            case["messages"],
            chat_template=case["template"],
            tokenize=False,
            add_generation_prompt=case["add_generation_prompt"],
        )
        for case in CASES
    ]


def test_minijinja_writes_what_transformers_does(written):
    minijinja = pytest.importorskip("minijinja")
    engine = minijinja.Environment(trim_blocks=True, lstrip_blocks=True)
    assert [engine.render_str(case["template"], **case) for case in CASES] == written


def test_huggingface_jinja_writes_what_transformers_does(written):
    node = shutil.which("node")
    where = os.environ | {"NODE_PATH": os.environ.get("NODE_PATH", str(Path(sys.prefix) / "node_modules"))}

    def run(code: str, told: str = "") -> subprocess.CompletedProcess:
        return subprocess.run(
            [node, "-e", code], input=told, env=where, check=False, capture_output=True, text=True, timeout=300
        )

    if not node or run("require('@huggingface/jinja')").returncode:
        pytest.skip("node or @huggingface/jinja is not installed")
    done = run(BY_NODE, json.dumps(CASES))
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == written


PLAIN = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.For, nodes.Assign),
    *(nodes.Name, nodes.NSRef, nodes.Const, nodes.List, nodes.Dict, nodes.Pair, nodes.Keyword),
    *(nodes.Getattr, nodes.Getitem, nodes.Call, nodes.Add, nodes.And, nodes.Or, nodes.Not),
    *(nodes.Compare, nodes.Operand, nodes.Test, nodes.CondExpr),
)
"""What was run in every engine. Filters are not among it: each engine knows others."""
CALLED = {"namespace", "split", "strip", "lstrip"}


@pytest.mark.parametrize("name", TEXTS)
def test_a_template_is_made_of_what_every_engine_was_seen_to_know(name):
    for node in jinja2.Environment().parse(TEXTS[name]).find_all(nodes.Node):
        assert type(node) in PLAIN, f"{type(node).__name__} in line {node.lineno}"
        if isinstance(node, nodes.Call):
            assert getattr(node.node, "attr", getattr(node.node, "name", None)) in CALLED
        if isinstance(node, nodes.Test):
            assert node.name == "string"
