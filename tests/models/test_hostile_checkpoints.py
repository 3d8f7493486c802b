"""Checkpoint folders that were made to do harm, or are broken: a UserError, and nothing of theirs is run."""

import json
import os
import pickle
import random
import resource
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2ForCausalLM

from switchkd_cli.engine.build import check_checkpoint
from switchkd_cli.engine.models.llava_parts import design
from switchkd_cli.errors import INPUT, UNPRINTABLE, UserError
from switchkd_cli.recipe.schema import Parts
from tests.support import tiny

CONFIGS_SCRAMBLED = 60
SEED = 5


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A whole model, its language model and its tower, each a folder."""
    folder = tmp_path_factory.mktemp("sound")
    model = tiny.model(seed=1)
    model.save(folder / "whole")
    Qwen2ForCausalLM(model.model.config.text_config).save_pretrained(folder / "language")
    model.inputs.processor.tokenizer.save_pretrained(folder / "language")
    model.model.model.vision_tower.save_pretrained(folder / "tower")
    return folder


@pytest.fixture
def place(sound, tmp_path, monkeypatch):
    """The folders, in a folder where nothing else is written; nobody sits at the terminal."""
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked for leave to run code"))
    return tmp_path


def read(folder, **more):
    return check_checkpoint(str(folder), "teacher", **more).build()


def parts(place, **changes):
    named = {"vision": str(place / "tower"), "language": str(place / "language")}
    return design(Parts(family="llava", **(named | changes))).build()


def refused(of, *arguments, **more):
    """The problems of what is refused, the memory it took small."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as error:
        of(*arguments, **more)
    assert error.value.code == INPUT or "this machine has" in error.value.problems[0]
    assert not any(map(UNPRINTABLE.search, error.value.problems))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB
    return error.value.problems


def edit(file, **changes):
    """Changes fields of a JSON file; `part__field` is one of a part."""
    told = json.loads(file.read_text())
    for name, value in changes.items():
        *parents, last = name.split("__")
        target = told
        for step in parents:
            target = target[step]
        target[last] = value
    file.write_text(json.dumps(told))


def test_the_folders_are_sound(place):
    assert read(place / "whole").inputs.usual.text.count("<image>") == 4
    assert parts(place).inputs.usual.text.count("<image>") == 4


# --- code


class Payload:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return (open, ("pwned", "w"))


def as_pickle(folder, held):
    (folder / "model.safetensors").unlink()
    with (folder / "pytorch_model.bin").open("wb") as stream:
        pickle.dump(held, stream)


@pytest.mark.parametrize("save", [pickle.dump, torch.save])
@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_a_pickle_never_runs_its_code(place, save, allowed, name):
    folder = place / "whole"
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    with (folder / name).open("wb") as stream:
        save({**weights, "payload": Payload()}, stream)
    problems = refused(read, folder, allow_pickle=allowed)
    if not allowed:
        assert f"only pickled weights ({name}), which could run code when read" in problems[0]
    assert not (place / "pwned").exists()


def test_the_payload_would_have_worked(place):
    pickle.loads(pickle.dumps(Payload())).close()
    assert (place / "pwned").exists()


@pytest.mark.parametrize("part", ["language", "tower"])
def test_a_part_that_is_a_pickle(place, part):
    as_pickle(place / part, {"payload": Payload()})
    assert "only pickled weights" in refused(parts, place)[0]
    refused(parts, place, allow_pickle=True)
    assert not (place / "pwned").exists()


CODE = 'open("pwned", "w")\nfrom transformers import *\nclass Mine: pass\n'
AUTO = {
    name: "mine.Mine" for name in ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText")
}


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"]
)
def test_code_in_a_folder_is_never_run(place, file, known):
    """Where transformers has the class itself, its own is taken; else the folder is refused, and nobody is asked."""
    folder = place / "whole"
    (folder / "mine.py").write_text(CODE)
    processors = {
        "AutoTokenizer": ["mine.Mine", "mine.Mine"],
        "AutoProcessor": "mine.Mine",
        "AutoImageProcessor": "mine.Mine",
    }
    changes = {"auto_map": AUTO if file == "config.json" else processors}
    field = {"config.json": "model_type", "tokenizer_config.json": "tokenizer_class"}.get(file)
    if not known and field:
        changes[field] = "Mine"
    elif not known:
        changes |= {"processor_class": "Mine", "image_processor_type": "Mine"}
    edit(folder / file, **changes)
    try:
        read(folder)
    except UserError as error:
        assert error.code == INPUT and "trust_remote_code" not in str(error)
    assert not (place / "pwned").exists()


def test_a_part_that_brings_its_own_code(place):
    (place / "language" / "mine.py").write_text(CODE)
    edit(place / "language" / "config.json", auto_map=AUTO, model_type="mine")
    assert "it needs its own code, which is never run" in refused(parts, place)[0]
    assert not (place / "pwned").exists()


def test_what_would_be_fetched_is_refused(place):
    """Adapters name the model that they were made for; attention can name a repository of code."""
    (place / "whole" / "adapter_config.json").write_text('{"base_model_name_or_path": "../elsewhere"}')
    assert "holds LoRA adapters, not a whole model" in refused(read, place / "whole")[0]
    edit(place / "language" / "config.json", attn_implementation="someone/kernels")
    assert "code from a hub is never run" in refused(parts, place)[0]


# --- weights


def header(folder, change):
    """Rewrites the header of the safetensors file; the tensors stay."""
    file = folder / "model.safetensors"
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    told = json.loads(content[8 : 8 + length])
    change(told)
    text = json.dumps(told).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def overlap(told):
    first, second = [name for name in told if name != "__metadata__"][:2]
    told[second]["data_offsets"] = told[first]["data_offsets"]


def beyond(told):
    name = next(name for name in told if name != "__metadata__")
    told[name]["data_offsets"][1] += 10**12


def enormous(told):
    name = next(name for name in told if name != "__metadata__")
    told[name]["shape"] = [10**9, 10**9]


def negative(told):
    name = next(name for name in told if name != "__metadata__")
    told[name]["shape"] = [-1, 5]


def unknown_type(told):
    name = next(name for name in told if name != "__metadata__")
    told[name]["dtype"] = "pickle"


@pytest.mark.parametrize("change", [overlap, beyond, enormous, negative, unknown_type, dict.clear])
def test_a_header_that_lies(place, change):
    header(place / "whole", change)
    assert "model.safetensors is damaged or cut short" in refused(read, place / "whole")[0]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 4,
        struct.pack("<Q", 2**63),
        struct.pack("<Q", 10**12) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"\xff\xfe{}",
        struct.pack("<Q", 100_000) + b'{"a":' * 20_000,
        pickle.dumps({}),
    ],
)
def test_a_file_that_is_no_safetensors(place, content):
    (place / "whole" / "model.safetensors").write_bytes(content)
    assert "model.safetensors is damaged or cut short" in refused(read, place / "whole")[0]


def tensors(folder, change):
    file = folder / "model.safetensors"
    held = load_file(file)
    change(held, next(name for name in held if name.endswith("linear_1.weight")))
    save_file(held, file, metadata={"format": "pt"})


def test_tensors_of_the_wrong_shape_name_or_number(place):
    folder = place / "whole"
    tensors(folder, lambda held, name: held.update({name: torch.zeros(3, 5)}))
    assert "1 tensors of another shape: " in refused(read, folder)[0]
    tensors(folder, lambda held, name: held.pop(name))
    assert "1 tensors are not in the weights, such as " in refused(read, folder)[0]


def test_more_tensors_than_the_model_has_are_left_in_the_file(place):
    """Published towers come with text halves and pooling heads."""
    expected = read(place / "whole").model.state_dict()
    tensors(place / "whole", lambda held, name: held.update({"something.else": torch.ones(4)}))
    found = read(place / "whole").model.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[n], expected[n]) for n in expected)


@pytest.mark.parametrize(("left", "like"), [(".layers.9.mlp.", ".layers.0.mlp."), ("o_proj.bias", "o_proj.weight")])
def test_layers_and_biases_that_the_config_leaves_out_are_no_other_model(place, left, like):
    """A config of fewer layers would be read as a smaller model, without a word."""

    def more(held, _):
        known = next(name for name in held if like in name)
        held[known.replace(like, left)] = held[known].clone()

    tensors(place / "whole", more)
    problem = refused(read, place / "whole")[0]
    assert "1 tensors have no place in what config.json describes, such as " in problem and left in problem


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_are_named_by_file_and_tensor(place, value, dtype):
    def spoil(held, name):
        held.update({name: tensor.to(dtype) for name, tensor in held.items() if tensor.is_floating_point()})
        held[name][0, 3] = held[name][1, 1] = value

    tensors(place / "whole", spoil)
    (told,) = refused(read, place / "whole")
    assert told.startswith(f"teacher: {place}/whole: model.safetensors: ")
    assert told.endswith("linear_1.weight: 2 of its 256 values are NaN or infinite")


def test_of_many_tensors_that_are_not_finite_some_are_named(place):
    file = place / "language" / "model.safetensors"
    held = {name: torch.full_like(tensor, torch.nan) for name, tensor in load_file(file).items()}
    save_file(held, file, metadata={"format": "pt"})
    told = refused(parts, place)
    assert told[0].startswith(f"student.language: {place}/language: model.safetensors: ")
    assert len(told) == 6 and told[5] == f"... and {len(held) - 5} more tensors"


def test_a_part_s_pickle_with_values_that_are_not_finite(place):
    held = load_file(place / "tower" / "model.safetensors")
    name = next(name for name in held if name.endswith("layers.0.mlp.fc1.bias"))
    held[name] = torch.full_like(held[name], torch.inf)
    (place / "tower" / "model.safetensors").unlink()
    torch.save(held, place / "tower" / "pytorch_model.bin")
    told = refused(parts, place, allow_pickle=True)
    assert told == (
        f"student.vision: {place}/tower: pytorch_model.bin: {name}: 32 of its 32 values are NaN or infinite",
    )


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.complex64])
def test_tensors_of_another_type(place, dtype):
    """They are read as the numbers that they are, or refused."""
    tensors(place / "whole", lambda held, name: held.update({name: held[name].to(dtype)}))
    try:
        model = read(place / "whole")
    except UserError as error:
        assert error.code == INPUT
    else:
        assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "index",
    [
        {},
        [],
        {"weight_map": None},
        {"weight_map": []},
        {"weight_map": {}},
        {"weight_map": {"a": 7}},
        {"weight_map": {"a": "../language/model.safetensors"}},
        {"weight_map": {"a": "/etc/passwd"}},
        {"weight_map": {"a": ""}},
        {"weight_map": {"a": "absent.safetensors"}},
        {"weight_map": {"a": "x" * 5000}},
    ],
)
def test_an_index_that_names_no_weights_of_its_own(place, index):
    (place / "whole" / "model.safetensors").unlink()
    (place / "whole" / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(read, place / "whole")


ODD = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": lambda path: path.mkdir(),
    "a link to itself": lambda path: path.symlink_to(path.name),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize(
    "file", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "processor_config.json"]
)
def test_a_file_of_a_checkpoint_that_is_no_file(place, file, odd):
    """A pipe that nobody writes to would be waited for, and a device read for ever."""
    (place / "whole" / file).unlink()
    ODD[odd](place / "whole" / file)
    try:
        read(place / "whole")
    except UserError as error:
        assert error.code == INPUT


# --- configs


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"text_config__hidden_size": 10**9}, "text_config.hidden_size must be a whole number from 1 to 65536"),
        ({"text_config__num_hidden_layers": 10**9}, "text_config.num_hidden_layers must be a whole number"),
        ({"text_config__vocab_size": 2**40}, "text_config.vocab_size must be a whole number"),
        ({"text_config__num_attention_heads": 0}, "text_config.num_attention_heads must be a whole number from 1"),
        ({"text_config__hidden_size": 65536}, "parameters, the weights are"),
        ({"text_config__num_hidden_layers": 1024}, "teacher: "),
        ({"text_config__vocab_size": 2**21}, "parameters, the weights are"),
        ({"vision_config__image_size": 10**9}, "vision_config.image_size must be a whole number"),
        ({"vision_config__image_size": 1}, "image_size 1 is less than patch_size 12"),
        ({"vision_config__patch_size": 0}, "vision_config.patch_size must be a whole number"),
        ({"vision_config__num_channels": 10**9}, "vision_config.num_channels must be 3"),
        ({"vision_config__num_hidden_layers": -1}, "vision_config.num_hidden_layers must be a whole number"),
        ({"vision_config__hidden_size": 16.5}, "vision_config.hidden_size must be a whole number"),
        ({"vision_config": "siglip_vision_model"}, "teacher: "),
        ({"text_config": None, "vision_config": None}, "teacher: "),
        ({"vision_feature_layer": 10**9}, "feature_layer is counted from the end"),
        ({"vision_feature_select_strategy": "all"}, "teacher: "),
        ({"image_token_index": 10**9}, "the config says 1000000000"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantized weights can't be trained or taught from"),
        ({"model_type": "\x1b[31mred"}, "teacher: "),
        ({"model_type": ["llava"]}, "teacher: "),
    ],
)  # fmt: skip
def test_a_config_of_absurd_sizes(place, changes, expected):
    edit(place / "whole" / "config.json", **changes)
    assert any(expected in problem for problem in refused(read, place / "whole"))


@pytest.mark.parametrize(
    "fresh",
    [
        {"hidden_size": 10**9},
        {"hidden_size": 65536, "intermediate_size": 1 << 18, "num_hidden_layers": 200},
        {"num_hidden_layers": 10**12},
        {"intermediate_size": -1},
        {"hidden_size": 10**400},
        {"hidden_size": None},
        {"num_attention_heads": 0},
    ],
)
@pytest.mark.parametrize("part", ["vision", "language"])
def test_a_fresh_part_of_absurd_sizes(part, fresh):
    spec = {"family": "llava", "vision": {"fresh": tiny.VISION}, "tokenizer": "playground:tokenizer"}
    spec["language"] = {"fresh": {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}}
    spec[part] = {"fresh": spec[part]["fresh"] | fresh}
    refused(lambda: design(Parts(**spec)).build())


def test_counting_parameters_leaves_the_random_state():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    from transformers import AutoModelForImageTextToText

    from switchkd_cli.engine.weights import check_memory

    check_memory(AutoModelForImageTextToText, tiny_config(), "teacher")
    assert torch.rand(1) == expected


def tiny_config():
    state = torch.get_rng_state()
    config = tiny.model().model.config
    torch.set_rng_state(state)
    return config


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("preprocessor_config.json", {"size": {"height": 10**6, "width": 10**6}}),
        ("preprocessor_config.json", {"size": {"height": 0, "width": -1}}),
        ("preprocessor_config.json", {"size": "large"}),
        ("preprocessor_config.json", {"image_mean": [0.5]}),
        ("preprocessor_config.json", {"image_std": [0, 0, "x"]}),
        ("preprocessor_config.json", {"resample": 10**6}),
        ("processor_config.json", {"patch_size": 0}),
        ("processor_config.json", {"image_processor": []}),
    ],
)
def test_an_image_processor_that_can_not_be(place, file, changes):
    folder = place / "whole"
    (folder / "processor_config.json").unlink() if file == "preprocessor_config.json" else None
    edit(folder / file, **changes)
    refused(read, folder)


GARBAGE = [
    "",
    "{",
    "[]",
    "null",
    "7",
    '"x"',
    "{}",
    "[" * 100_000,
    '{"a": ' * 50_000,
    "\x00",
    '{"version": "1.0"}',
    "9" * 5000,
]


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json"])
def test_garbage_for_a_json_file(place, file):
    for content in (*GARBAGE, b"\xff\xfe", b"\x80\x04."):
        (place / "whole" / file).write_bytes(content if isinstance(content, bytes) else content.encode())
        try:
            read(place / "whole")
        except UserError as error:
            assert error.code == INPUT and not any(map(UNPRINTABLE.search, error.problems))
        else:
            assert file not in ("config.json", "tokenizer.json")


@pytest.mark.slow
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "processor_config.json"])
def test_scrambled_values_of_a_json_file(place, file):
    """Single values of the file changed at random: a model, or a UserError."""
    values = (None, True, -1, 0, 10**9, 10**400, 0.5, "", "x", "\x1b[31m", [], {}, [[]], {"": 0}, "../x", float("nan"))
    chance, plain = random.Random(SEED), json.loads((place / "whole" / file).read_text())
    read_ones = 0
    for _ in range(CONFIGS_SCRAMBLED):
        told = json.loads(json.dumps(plain))
        target = told
        while True:
            step = chance.choice(list(target) if isinstance(target, dict) else range(len(target)))
            if not isinstance(target[step], dict | list) or not target[step] or chance.random() < 0.2:
                break
            target = target[step]
        target[step] = chance.choice(values)
        (place / "whole" / file).write_text(json.dumps(told))
        try:
            read(place / "whole")
            read_ones += 1
        except UserError as error:
            assert not any(map(UNPRINTABLE.search, error.problems))
    assert 0 < read_ones < CONFIGS_SCRAMBLED


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_are_read_in_the_precision_they_are_stored_in(place, dtype):
    """As an evaluation on a GPU does."""
    tensors(place / "whole", lambda held, name: held.update({n: t.to(dtype) for n, t in held.items()}))
    edit(place / "whole" / "config.json", dtype=str(dtype).removeprefix("torch."))
    model = check_checkpoint(str(place / "whole"), "model").build("auto")
    assert {p.dtype for p in model.parameters()} == {dtype}
