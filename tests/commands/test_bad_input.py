"""Bad input, end to end with the real engine: an exit code, a line that says why, a hint, and nothing written."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from importlib import metadata

import huggingface_hub.constants
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration, Qwen2ForCausalLM

from switchkd_cli import cli, registry
from switchkd_cli.engine.models.blueprint import HINTS
from switchkd_cli.files.atomic import hold
from switchkd_cli.planning import preflight
from switchkd_cli.recipe.load import load
from switchkd_cli.runs.claim import claim_folder
from switchkd_cli.runs.run_folder import folder as run_folder
from switchkd_cli.scheduler import pool
from tests.support import fake_engine, tiny

LANGUAGE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
RECIPE = {
    "title": "small",
    "student": {
        "family": "llava",
        "vision": {"fresh": tiny.VISION},
        "language": {"fresh": LANGUAGE},
        "tokenizer": "playground:tokenizer",
    },
    "teacher": {"family": "llava", "checkpoint": "./teacher"},
    "data": {
        "captions": {"source": "llava_json", "parameters": {"file": "rows.json", "images": "pictures"}},
        "questions": {"source": "llava_json", "parameters": {"file": "rows.json", "images": "pictures"}},
    },
    "stages": [
        {
            "name": "pretrain",
            "data": "captions",
            "train": ["projector"],
            "lr": 0.001,
            "batch": 2,
            "steps": 1,
            "objective": [{"loss": "cross_entropy"}],
        },
        {
            "name": "distill",
            "data": "questions",
            "train": ["vision", "projector", "language"],
            "lr": 0.001,
            "batch": 2,
            "steps": 1,
            "objective": [
                {"name": "ce", "loss": "cross_entropy"},
                {"name": "vsd", "loss": "dbild", "of": "switch", "to": "teacher"},
            ],
        },
    ],
    "evaluation": {"benchmarks": ["mme"], "items": 4},
    "rows": {"switch-kd": {"title": "Switch-KD"}, "sft": {"drop": ["vsd"]}},
}


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A sound teacher for the student of the recipe, a Qwen2 language model and a SigLIP tower."""
    folder = tmp_path_factory.mktemp("models")
    sound = tiny.model(24, seed=2)
    sound.save(folder / "teacher")
    Qwen2ForCausalLM(sound.model.config.text_config).save_pretrained(folder / "language")
    sound.model.model.vision_tower.save_pretrained(folder / "tower")
    sound.inputs.processor.tokenizer.save_pretrained(folder / "language")
    return folder


@pytest.fixture
def place(tmp_path, models, monkeypatch):
    """A folder with a recipe, its data and models, and the finished run of another recipe."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "rows.json").write_text(json.dumps(tiny.rows(tmp_path / "pictures")))
    for name in ("small", "earlier"):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    with claim_folder(tmp_path / "runs", load("earlier.yaml")) as (folder, _):
        folder.log({"step": 1})
        shutil.copytree(models / "teacher", folder.model)
    return tmp_path


@pytest.fixture
def refused(place, monkeypatch, capsys):
    """Runs the program in this process; what it prints, when it refuses and leaves everything as it was."""

    def run(*arguments, code=2):
        before = tree(place)
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["switchkd", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert (ended.value.code, out) == (code, ""), err
        assert tree(place) == before
        return err.splitlines()

    return run


def tree(folder):
    """Every path under a folder, with what it holds."""
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def program(*arguments, **environment):
    """The program in a process of its own: exit code, standard output, lines of standard error."""
    command = [sys.executable, "-m", "switchkd_cli", *map(str, arguments)]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )
    return done.returncode, done.stdout, done.stderr.splitlines()


# --- the recipe and the command line (tests/commands/test_cli.py has more of these)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ("distill", "wrong.yaml"),
            [
                "wrong.yaml:57: stages.distill.objective.vsd.loss: unknown loss, got 'dbidl' (did you mean 'dbild'?)",
                "wrong.yaml:70: sede: unknown key, got 'sede' (did you mean 'seed'?)",
            ],
        ),
        (
            ("distill", "small.yaml", "--row", "swich-kd"),
            ["small.yaml: row: unknown row, got 'swich-kd' (did you mean 'switch-kd'?)"],
        ),
        (
            ("pretrain", "small.yaml", "stages.pretrian.lr=1"),
            ["override: stages.pretrian.lr: no such field in stages, got 'pretrian' (did you mean 'pretrain'?)"],
        ),
        (
            ("distill", "small.yaml", "data.captions.parameters.turns=chain"),
            [
                "override: data.captions.parameters.turns: must be one of chained, independent, got 'chain' (did you mean 'chained'?)"
            ],
        ),
        (
            ("distill", "small.yaml", "student.projector=linear"),
            ["override: student.projector: must be one of mlp2x_gelu, ldpnetv2, got 'linear'"],
        ),
        (
            ("eval", "--benchmarks", "mme,popes"),
            ["--benchmarks: unknown benchmark, got 'popes' (did you mean 'pope'?)"],
        ),
        (("eval", "--out", "nowhere"), ["nowhere: no finished run", "hint: switchkd distill recipes/quickstart.yaml"]),
    ],
)
def test_what_the_recipe_or_the_command_line_gets_wrong(place, arguments, expected):
    text = yaml.safe_dump(RECIPE, sort_keys=False)
    (place / "wrong.yaml").write_text(text.replace("loss: dbild", "loss: dbidl") + "sede: 1\n")
    before = tree(place)
    code, out, err = program(*arguments)
    assert (code, out) == (2, "")
    assert err == expected
    assert tree(place) == before


# --- data


def test_missing_data_is_named_by_the_real_program(place):
    before = tree(place)
    code, out, err = program("distill", "small.yaml", "data.questions.parameters.file=none.json")
    assert (code, out) == (2, "")
    assert err == ["none.json: no such data file", "hint: check the recipe's `data`"]
    assert tree(place) == before


def test_a_missing_image_folder(refused):
    assert refused("distill", "small.yaml", "data.captions.parameters.images=none") == [
        "none: no such image folder",
        "hint: check `images` in the recipe's `data`",
    ]


def test_every_fault_of_the_rows_is_reported_before_anything_is_trained(place, refused):
    pictures = place / "pictures"
    tiny.picture(place, "outside.png", 1)
    (pictures / "cut.png").write_bytes((pictures / "a.png").read_bytes()[:800])
    (pictures / "text.png").write_text("not a picture")
    names = ["cut.png", "text.png", "none.png", "../outside.png", f"{place}/outside.png"]
    rows = [tiny.row(f"bad{i}", name, ("What?", "dog")) for i, name in enumerate(names)]
    silent = tiny.row("silent", None, ("What?", "dog"))
    silent["conversations"].pop()
    (place / "bad.json").write_text(json.dumps([*tiny.rows(pictures), *rows, silent]))
    # the stage before has sound data: it isn't trained either
    lines = refused("distill", "small.yaml", "data.questions.parameters.file=bad.json")
    assert [line.split(": ")[:3] for line in lines[:5]] == [["bad.json", f"row {4 + i}", f"bad{i}"] for i in range(5)]
    assert "unreadable image pictures/cut.png: " in lines[0]
    assert "unreadable image pictures/text.png: cannot identify image file" in lines[1]
    assert lines[2:] == [
        "bad.json: row 6: bad2: no such image: pictures/none.png",
        "bad.json: row 7: bad3: image path leaves its folder: ../outside.png",
        f"bad.json: row 8: bad4: image path leaves its folder: {place}/outside.png",
        "... and 1 more of 10 rows",
        ("hint: mend or remove these rows: 60.0% of the rows can't be used; nothing was trained (max_faults: 1.0%)"),
    ]


def test_a_conversation_without_an_answer(place, refused):
    silent = tiny.row("silent", None, ("What?", "dog"))
    silent["conversations"].pop()
    (place / "bad.json").write_text(json.dumps([silent]))
    assert refused("pretrain", "small.yaml", "data.captions.parameters.file=bad.json")[0] == (
        "bad.json: row 0: silent: turns must go human, gpt, human, gpt, ...; a conversation needs an answer, got human"
    )


def test_workers_tell_the_same_with_the_same_exit_code(place, monkeypatch, capsys):
    monkeypatch.setattr(pool, "WORKER", (sys.executable, fake_engine.__file__))
    before = tree(place)
    for command, *more in (("distill", "--row", "sft", "--jobs", "2"), ("ablate",)):
        arguments = [command, "small.yaml", *more, "stages.distill.batch=7"]
        monkeypatch.setattr(sys, "argv", ["switchkd", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2
        assert "  data.questions: no such folder: pictures\n  hint: mend it\n" in capsys.readouterr().err
    assert tree(place) == before


# --- the teacher and the student


def test_a_teacher_with_another_tower_is_reported_before_weights_are_read(place, refused, monkeypatch):
    other = tiny.model(vision={"hidden_size": 32, "image_size": 36})
    other.save(place / "other")
    monkeypatch.setattr(LlavaForConditionalGeneration, "from_pretrained", None)
    assert refused("distill", "small.yaml", "teacher.checkpoint=./other") == [
        "teacher: vision width is 32, the student's is 16",
        "teacher: image size is 36, the student's is 24",
        "teacher: patch grid is 3 x 3, the student's is 2 x 2",
        "teacher: feature count is 9, the student's is 4",
        "teacher: image token count is 9, the student's is 4",
        f"hint: {HINTS['adapter']}; {HINTS['towers']}",
    ]


def test_a_dry_run_shows_the_pair_that_it_refuses(place, monkeypatch, capsys):
    tiny.model(vision={"hidden_size": 32}).save(place / "other")
    capsys.readouterr()  # transformers tells that it saves
    words = ["switchkd", "distill", "small.yaml", "teacher.checkpoint=./other", "--dry-run"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    cells = [re.split(r"\s{2,}", line.strip()) for line in out.splitlines()]
    assert ["vision width", "16", "32", "adapter"] in cells and ["patch grid", "2 x 2", "2 x 2", "yes"] in cells
    assert "adapter: " in out and "bytes: " not in out
    assert ended.value.code == 2
    assert err.splitlines() == ["teacher: vision width is 32, the student's is 16", f"hint: {HINTS['adapter']}"]


def test_a_teacher_with_another_vocabulary(place, refused):
    file = place / "teacher" / "tokenizer.json"
    words = json.loads(file.read_text())
    last = max(words["added_tokens"], key=lambda token: token["id"])
    theirs, ours = "quokka", last["content"]
    last["content"] = theirs
    if ours in words["model"]["vocab"]:
        words["model"]["vocab"][theirs] = words["model"]["vocab"].pop(ours)
    file.write_text(json.dumps(words))
    told = f"teacher: vocabulary: id {last['id']} is {theirs!r}, the student's is {ours!r} (1 ids differ)"
    hint = f"hint: add `alignment: bytes` to vsd; or {HINTS['words']}"
    between = "stages.distill.objective.vsd.of=student"  # the switch itself needs no common words
    assert refused("distill", "small.yaml", between) == [told, hint]


def remove(*names):
    def spoil(folder):
        for name in names:
            (folder / name).unlink()

    return spoil


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def pickled(folder):
    weights = load_file(folder / "model.safetensors")
    remove("model.safetensors")(folder)
    torch.save(weights, folder / "pytorch_model.bin")


def cut_short(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def lacking(folder):
    file = folder / "model.safetensors"
    weights = load_file(file)
    del weights["multi_modal_projector.linear_1.bias"]
    save_file(weights, file, metadata={"format": "pt"})


def of_other_shapes(folder):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["text_config"]["intermediate_size"] = 64
    file.write_text(json.dumps(config))


def language_model(folder):
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("language"), folder)


def tower(folder):
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("tower"), folder)


def broken_config(folder):
    (folder / "config.json").write_text('{"model_type": ')


def unknown_config(folder):
    (folder / "config.json").write_text("{}")


FAMILY = "hint: name a whole vision-language model of such a family, for example a run's model/"
WHOLE = "not llava with siglip_vision_model or clip_vision_model"
SPOILED = [
    (language_model, f"is a qwen2 checkpoint, {WHOLE}", FAMILY),
    (tower, f"is a siglip_vision_model checkpoint, {WHOLE}", FAMILY),
    (broken_config, ": no readable config.json: Expecting value: line 1 column 16", None),
    (unknown_config, ": no readable config: Unrecognized model in", None),
    (
        remove("model.safetensors"),
        ": no weights (model.safetensors) there",
        "hint: name a folder that a whole model was saved to",
    ),
    (
        pickled,
        ": only pickled weights (pytorch_model.bin), which could run code when read",
        (
            "hint: save the model as model.safetensors: model.save_pretrained(folder) in transformers does; "
            "or allow reading its tensors, and nothing else: allow_pickle: true next to the model's name, "
            "--allow-pickle of switchkd eval"
        ),
    ),
    (cut_short, ": model.safetensors is damaged or cut short (", "hint: copy or fetch the checkpoint again"),
    (
        lacking,
        ": 1 tensors are not in the weights, such as model.multi_modal_projector.linear_1.bias",
        "hint: the weights and config.json are not of one model",
    ),
    (of_other_shapes, ": 6 tensors of another shape: ", "hint: the weights and config.json are not of one model"),
    (remove("tokenizer.json", "tokenizer_config.json"), ": no readable processor: ", None),
    (remove("processor_config.json", "preprocessor_config.json"), ": no readable processor: ", None),
]


@pytest.mark.parametrize(("spoil", "problem", "hint"), SPOILED, ids=lambda v: getattr(v, "__name__", None))
def test_a_teacher_that_is_no_whole_checkpoint(place, refused, spoil, problem, hint):
    spoil(place / "teacher")
    first, *rest = refused("distill", "small.yaml")
    assert first.startswith("teacher: ./teacher") and problem in first
    assert rest == ([hint] if hint else [])


@pytest.mark.parametrize(("spoil", "problem", "hint"), SPOILED, ids=lambda v: getattr(v, "__name__", None))
def test_eval_of_what_is_no_whole_checkpoint(place, refused, spoil, problem, hint):
    spoil(place / "teacher")
    first, *rest = refused("eval", "--model", "./teacher", "--items", 4, "--benchmarks", "mme")
    if WHOLE in problem or "Unrecognized" in problem:  # no recipe says which family it should be of
        kind = problem.removesuffix(WHOLE).removesuffix(", ") if WHOLE in problem else "names no model_type"
        problem, hint = f"{kind}, which no family reads ({', '.join(registry.FAMILIES)})", FAMILY
    assert first.startswith("model: ") and "teacher" in first and problem in first
    assert rest == ([hint] if hint else [])


def test_a_teacher_that_only_is_scored_is_checked_before_training(place, refused):
    language_model(place / "teacher")
    assert refused("distill", "small.yaml", "--row", "sft")[0].startswith("teacher: ./teacher is a qwen2")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("./teacher", "./teacher: no config.json or tokenizer.json in this folder"),
        ("./none", "./none: no such folder"),
        ("runs/small/switch-kd/seed0/model", "runs/small/switch-kd/seed0/model: no such folder"),
        ("runs/model", "runs/model: no such folder"),
        ("a/b/c", "a/b/c: no such folder"),
        ("my model", "my model: no such folder"),
        ("small.yaml", "small.yaml: not a folder"),
    ],
)
def test_an_empty_or_absent_checkpoint_folder(place, refused, name, problem):
    empty(place / "teacher")
    hint = "hint: name a checkpoint folder, a hub id, or a run's model/ folder"
    override = f"teacher.checkpoint={name}"
    assert refused("distill", "small.yaml", override) == [f"small: teacher.checkpoint: {problem}", hint]
    assert refused("eval", "--model", name) == [problem, hint]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "student.vision=./language",
            "student.vision: ./language is a qwen2 model, not one of siglip_vision_model, clip_vision_model",
        ),
        (
            "student.language=./tower",
            "student.language: ./tower is a siglip_vision_model model, not one of qwen2, llama",
        ),
        (
            "student.vision=./cut",
            "student.vision: ./cut: model.safetensors is damaged or cut short (Error while deserializing header",
        ),
        ("student.tokenizer=./tower", "student.tokenizer: ./tower: no tokenizer there"),
        (
            "student.vision.fresh.hiden_size=8",
            "student.vision.fresh.hiden_size: unknown key (did you mean 'hidden_size'?)",
        ),
        ("student.vision.fresh.hidden_size=wide", "student.vision.fresh: Validation error for field 'hidden_size'"),
        (
            "student.language.fresh.num_attention_heads=3",
            "student.language.fresh: hidden_size must be a multiple of 6, got 16",
        ),
        (
            "student.language.fresh.num_key_value_heads=32",
            "student.language.fresh: 2 heads can't share 32 num_key_value_heads",
        ),
        ("student.vision.fresh.hidden_act=gleu", "student: no model can be built of these parts: "),
        ("student.feature_layer=-9", "student: feature_layer is counted from the end, -1 to -3, got -9"),
    ],
)
def test_a_student_of_parts_that_do_not_fit(place, refused, override, expected):
    shutil.copytree(place / "tower", place / "cut")
    cut_short(place / "cut")
    assert refused("distill", "small.yaml", override)[0].startswith(expected)


# --- the hub


def test_a_hub_id_that_is_not_here_when_offline(refused):
    problem = "ours/model: not on this machine, and could not be fetched from the hub (HF_HUB_OFFLINE is set)"
    hint = "hint: name a checkpoint folder, or fetch it where there is a network and copy the cache"
    told = [f"teacher: {problem}", hint]
    assert refused("distill", "small.yaml", "teacher.checkpoint=ours/model", code=3) == told
    assert refused("eval", "--model", "ours/model", code=3) == [f"model: {problem}", hint]
    told = [f"student.vision: {problem}", hint]
    assert refused("distill", "small.yaml", "student.vision=ours/model", code=3) == told


def test_a_hub_that_can_not_be_reached_is_asked_once(refused, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", pytest.fail)  # no retries
    first, _ = refused("eval", "--model", "ours/model", code=3)
    assert first.startswith("model: ours/model: not on this machine, and could not be fetched from the hub (")


def test_published_data_sets_that_can_not_be_fetched(refused, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # lmms-eval waits between its attempts
    asked = ("--world", "hub", "--benchmarks", "mme", "--items", 2)
    problem, hint = refused("eval", "--model", "./teacher", *asked, code=3)
    assert problem.startswith("evaluation: a published data set could not be fetched (")
    assert hint == "hint: log in to the hub where there is a network (hf auth login), or ask for --world playground"


# --- the machine and the run folders


def test_without_lmms_eval_nothing_is_trained(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    for command in (("distill", "small.yaml"), ("eval", "--model", "./teacher", "--items", 4)):
        problem, hint = refused(*command, code=3)
        assert problem == "lmms-eval is not installed, and scores need it"
        assert hint.startswith("hint: pip install --no-deps lmms-eval==")


@pytest.mark.parametrize(
    "command",
    [
        ("distill", "small.yaml"),
        ("distill", "small.yaml", "evaluation=null"),
        ("distill", "small.yaml", "--dry-run"),
        ("pretrain", "small.yaml"),
        ("ablate", "loss", "--world", "playground"),
        ("eval", "--model", "./teacher", "--items", 4),
    ],
)
def test_with_a_library_outside_its_range_nothing_is_trained_or_scored(refused, monkeypatch, command):
    """filelock 4.3 has no `_api`, which lmms-eval 0.7.3 imports in the middle of an evaluation."""
    real = metadata.version
    monkeypatch.setattr(metadata, "requires", lambda name: ["filelock<4.3,>=3.16"])
    monkeypatch.setattr(metadata, "version", lambda name: "4.3.1" if name == "filelock" else real(name))
    monkeypatch.setattr(preflight, "_outside_range", preflight._outside_range.__wrapped__)
    problem, hint = refused(*command, code=3)
    assert problem.startswith("filelock 4.3.1 is installed, switchkd needs ")
    assert hint == "hint: pip install 'filelock<4.3,>=3.16'"


def test_a_folder_that_holds_another_run(place, refused):
    with claim_folder(place / "runs", load("small.yaml", overrides=["stages.distill.steps=9"])):
        pass
    problem, hint = refused("distill", "small.yaml")
    assert problem.startswith("runs/small/switch-kd/seed0: holds another run")
    assert hint == "hint: add --overwrite to move it aside, or --out FOLDER to write elsewhere"


def test_a_folder_that_a_running_process_holds(place, refused):
    with hold(run_folder(place / "runs", load("small.yaml")).path):
        assert refused("distill", "small.yaml") == [
            f"runs/small/switch-kd/seed0: in use by a running process: process {os.getpid()} on {socket.gethostname()}",
            "hint: wait for it, or add --out FOLDER to write elsewhere",
        ]


def test_an_out_that_is_no_folder(place, refused):
    hint = "hint: add --out FOLDER to write elsewhere"
    for command in (("distill", "small.yaml"), ("eval", "--model", "./teacher", "--items", 4)):
        problem, *rest = refused(*command, "--out", "rows.json")
        assert problem.startswith(f"{place / 'rows.json'}") and rest == [hint]


def test_eval_of_a_run_that_did_not_finish(place, refused):
    with pytest.raises(ZeroDivisionError), claim_folder(place / "runs", load("small.yaml")):
        1 / 0  # noqa: B018
    assert refused("eval", "--model", "runs/small/switch-kd/seed0") == [
        "runs/small/switch-kd/seed0: not finished (failed)",
        "hint: give the same command again to run it",
    ]


def test_eval_of_a_run_whose_model_is_gone(place, refused):
    model = run_folder(place / "runs", load("earlier.yaml")).model
    shutil.rmtree(model)
    assert refused("eval")[0] == f"{model}: no such folder"


def test_the_recipe_itself_is_sound(place, monkeypatch, capsys):
    """Else the tests above could be refused for another reason than theirs."""
    monkeypatch.setattr(sys, "argv", ["switchkd", "distill", "small.yaml", "evaluation=null"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert "model: " in capsys.readouterr().err
