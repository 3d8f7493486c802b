"""What is written, others load: transformers' Auto classes, releases before 5, and vLLM by the fields that it reads."""

import json
import re
import subprocess
import sys

import jinja2
import pytest
import torch
from safetensors import safe_open
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from switchkd_cli.engine.batch import Example, collate
from switchkd_cli.engine.build import check_checkpoint, check_model
from switchkd_cli.engine.data.conversation import Conversations
from switchkd_cli.engine.data.prompt_template import template_text
from switchkd_cli.engine.data.rows import Rows
from switchkd_cli.engine.data.turns import llava_row
from switchkd_cli.engine.models import model_folder
from switchkd_cli.engine.models.processors import IN_PARTS
from switchkd_cli.recipe.named_files import ASSETS
from switchkd_cli.recipe.schema import Parts
from switchkd_cli.registry import TEMPLATES
from switchkd_cli.registry import template as registered
from tests.models.test_models import picture
from tests.support import tiny, tiny_qwen

SIDE, PATCH, THETA = 48, 12, 1000000.0
SEEN = tiny.VISION | {"image_size": SIDE, "patch_size": PATCH}
READ = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.4,
    "rope_theta": THETA,
}
SQUARE = {"height": SIDE, "width": SIDE}
TOWERS = {
    "siglip": (
        SiglipVisionModel,
        SiglipVisionConfig(**SEEN, vision_use_head=False),
        SiglipImageProcessorPil(size=SQUARE, image_mean=[0.5] * 3, image_std=[0.5] * 3),  # no crop_size
    ),
    "clip": (
        CLIPVisionModel,
        CLIPVisionConfig(**SEEN),
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SQUARE),
    ),
}
KINDS = [("siglip", "full"), ("siglip", "default"), ("clip", "default"), ("clip", "full")]
ASKED = "What is it?"


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Towers and language models as they lie in a hub's folders; both languages have the Qwen tokenizer."""
    folder = tmp_path_factory.mktemp("parts")
    words = tiny_qwen.processor().tokenizer
    torch.manual_seed(0)
    for name, (model, config, pictures) in TOWERS.items():
        model(config).save_pretrained(folder / name)
        pictures.save_pretrained(folder / name)
    for name, model, config in (
        ("qwen2", Qwen2ForCausalLM, Qwen2Config(**READ, vocab_size=len(words) + 6, tie_word_embeddings=True)),
        ("llama", LlamaForCausalLM, LlamaConfig(**READ, vocab_size=len(words), tie_word_embeddings=False)),
    ):
        model(config).save_pretrained(folder / name)
        words.save_pretrained(folder / name)
    return folder


def student(parts, tower="siglip", select="default", language="qwen2", projector="mlp2x_gelu"):
    spec = Parts(
        family="llava",
        vision=str(parts / tower),
        language=str(parts / language),
        projector=projector,
        feature_select=select,
    )
    torch.manual_seed(2)
    return check_model(spec, "student", needs_template=False).build().eval()


def written(folder, model, template="chatml"):
    """The folder that a run that was taught in `template` leaves."""
    text = template_text(template, model.inputs.processor)
    rows = Rows([tiny.row("r", None, (ASKED, "a dog"))], llava_row, images=folder, turns="chained")
    taught = Conversations(rows, model.inputs, template=template)
    model.save(folder / "model", template=text, end=taught.end)
    return folder / "model"


def our_greedy(model, ids: list[int], pixels: torch.Tensor, count: int) -> list[int]:
    """Greedy tokens by V, P and L one after another, nothing cached."""
    tokens = list(ids)
    for _ in range(count):
        given = torch.tensor(tokens)
        image = given == model.inputs.image_token
        turn = torch.zeros_like(given)
        example = Example("r", given, given, turn, image, ({"pixel_values": pixels},))
        batch = collate([example], pad_token=0)
        visual = model.project(model.encode(batch.images))
        keep = torch.zeros_like(batch.input_ids, dtype=torch.bool)
        keep[0, -1] = True
        tokens.append(int(model.logits(model.hidden_states(batch, visual, keep))[0].argmax()))
    return tokens[len(ids) :]


@pytest.mark.parametrize("language", ["qwen2", "llama"])
@pytest.mark.parametrize(("tower", "select"), KINDS)
@torch.no_grad()
def test_auto_classes_generate_what_our_forward_does(parts, tmp_path, tower, select, language):
    mine = student(parts, tower, select, language)
    folder = written(tmp_path, mine)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": ASKED}]}]
    text = processor.apply_chat_template(asked, add_generation_prompt=True)
    inputs = processor(images=picture(), text=text, return_tensors="pt")
    model.generation_config.eos_token_id = None  # eight tokens, whatever they are
    told = model.generate(**inputs, do_sample=False, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]
    pixels = mine.inputs.processor.image_processor(picture(), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(inputs["pixel_values"][0], pixels, rtol=0, atol=0)
    assert told.tolist() == our_greedy(mine, inputs["input_ids"][0].tolist(), pixels, 8)
    assert len(set(told.tolist())) > 1


def test_a_folder_is_whole(parts, tmp_path):
    older = {"merges.txt", "vocab.json"}  # written, too, by transformers before 5
    assert {file.name for file in written(tmp_path, student(parts)).iterdir()} - older == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


@pytest.mark.parametrize(
    ("template", "end"), [("chatml", "<|im_end|>"), ("qwen2_base", "<|endoftext|>"), ("pretrain", "<|endoftext|>")]
)
def test_answers_end_where_the_conversation_ends_them(parts, tmp_path, template, end):
    mine = student(parts)
    folder = written(tmp_path, mine, template)
    words = AutoTokenizer.from_pretrained(folder)
    assert words.eos_token == end
    assert GenerationConfig.from_pretrained(folder).eos_token_id == words.eos_token_id
    assert AutoConfig.from_pretrained(folder).text_config.eos_token_id == words.eos_token_id
    assert mine.inputs.processor.tokenizer.eos_token == "<|endoftext|>"  # the model in hand is left as it is


def test_saving_twice_changes_nothing(parts, tmp_path):
    first = written(tmp_path, student(parts))
    check_checkpoint(str(first)).build().save(tmp_path / "again")
    for file in first.iterdir():
        again = (tmp_path / "again" / file.name).read_bytes()
        if file.name == "tokenizer_config.json":  # read through AutoProcessor, the class may have a general name
            again = re.sub(rb'(?<="tokenizer_class": ")\w+', b"Qwen2Tokenizer", again)
        assert again == file.read_bytes(), file.name


@pytest.mark.parametrize("projector", ["mlp2x_gelu", "ldpnetv2"])
def test_without_the_weights_all_the_rest_is_written_as_with_them(parts, tmp_path, projector):
    mine = student(parts, "clip", projector=projector)
    whole, rest = tmp_path / "whole", tmp_path / "rest"
    mine.save(whole, template=template_text("chatml", mine.inputs.processor), end="<|im_end|>")
    mine.save(rest, template=template_text("chatml", mine.inputs.processor), end="<|im_end|>", weights=False)
    assert sorted(f.name for f in whole.iterdir()) == sorted(f.name for f in rest.iterdir())
    for file in whole.iterdir():
        same = file.read_bytes() == (rest / file.name).read_bytes()
        assert same != (file.suffix == ".safetensors"), file.name
    with safe_open(rest / "model.safetensors", "pt") as held:
        assert len(held.keys()) == 1


@pytest.mark.parametrize(
    ("published", "idle"),
    [
        ({"do_sample": False, "temperature": 0.9}, ["temperature"]),
        ({"temperature": 0.2, "top_p": 0.7, "top_k": 20, "length_penalty": 0.5}, ["temperature", "top_k", "top_p", "length_penalty"]),
        ({"do_sample": True, "temperature": 0.2, "top_p": 0.7}, []),
        ({"num_beams": 4, "length_penalty": 0.5, "pad_token_id": -1}, []),
        ({"output_scores": True, "repetition_penalty": 1.1}, ["output_scores"]),
    ],
)  # fmt: skip
def test_what_a_published_generation_config_says_in_vain_is_left_out(parts, tmp_path, published, idle):
    mine = student(parts)
    mine.model.generation_config = before = GenerationConfig(**published)
    told = mine.save(tmp_path / "model")
    assert sorted(line.split()[1] for line in told) == sorted(idle)
    assert mine.model.generation_config is before
    saved = GenerationConfig.from_pretrained(tmp_path / "model")
    saved.validate(strict=True)
    kept = {name: value for name, value in published.items() if name not in [*idle, "pad_token_id"]}
    assert {name: getattr(saved, name) for name in kept} == kept
    assert saved.pad_token_id == mine.inputs.processor.tokenizer.pad_token_id


def test_large_weights_are_sharded_and_read_again(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(model_folder, "SHARD", "20KB")
    mine = student(parts, "clip", "default", "llama")
    folder = written(tmp_path, mine)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    again = check_checkpoint(str(folder)).build()
    for name, tensor in mine.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], tensor, rtol=0, atol=0, msg=name)


# --- conversations


@pytest.mark.parametrize("pictures", [0, 1, 2])
@pytest.mark.parametrize("name", [*TEMPLATES, "playground"])
def test_text_with_placeholders_asks_what_parts_ask(name, pictures):
    """lmms-eval's llava_hf writes "<image> <image>\\n" and the question as one text."""
    processor = tiny_qwen.processor()
    template = (ASSETS / "tokenizer" / "chat_template.jinja").read_text() if name == "playground" else registered(name)
    in_parts = [{"type": "image"}] * pictures + [{"type": "text", "text": ASKED}]
    in_text = " ".join(["<image>"] * pictures) + "\n" * bool(pictures) + ASKED
    before, after = (
        [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        for content, answer in ((in_parts, [{"type": "text", "text": "a dog"}]), (in_text, "a dog"))
    )
    for turns, generation in ((1, True), (2, False)):
        more = {"tokenize": False, "add_generation_prompt": generation}
        wanted = processor.apply_chat_template(before[:turns], chat_template=template, **more)
        for messages in (before, after):
            for who in (processor, processor.tokenizer):
                asked = who.apply_chat_template(messages[:turns], chat_template=IN_PARTS + template, **more)
                assert asked == wanted


def test_the_template_is_the_processors_and_the_tokenizers(parts, tmp_path):
    folder = written(tmp_path, student(parts), "qwen2_base")
    processor = AutoProcessor.from_pretrained(folder)
    assert processor.chat_template == processor.tokenizer.chat_template
    assert processor.chat_template == AutoTokenizer.from_pretrained(folder).chat_template
    assert processor.chat_template.startswith(IN_PARTS)


def test_a_tokenizer_that_opens_texts_opens_them_once_in_training_and_in_use(parts, tmp_path):
    """Llama's begins with <s>; a template that writes it does not make it two. Qwen2's begins with nothing."""
    mine = student(parts, "clip", "default", "llama")
    words = mine.inputs.processor.tokenizer
    words.bos_token = "<|endoftext|>"
    words.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", words.bos_token_id)]
    )
    row = tiny.row("r", tiny.picture(tmp_path, "r.png", 1), (ASKED, "a dog"))
    for template in ("qwen2_base", None):
        mine.inputs.processor.chat_template = "{{ bos_token }}" + template_text("qwen2_base", mine.inputs.processor)
        data = Conversations(Rows([row], llava_row, images=tmp_path, turns="chained"), mine.inputs, template=template)
        trained = data[0].input_ids.tolist()
        content = [{"type": "image", "image": picture()}, {"type": "text", "text": ASKED}]
        used = mine.inputs.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=data.chat_template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
        )["input_ids"][0]
        assert trained[: len(used)] == used
        assert trained[0] == words.bos_token_id != trained[1]


# --- vLLM


def vllm_tokens(config: dict) -> int:
    """Image tokens as vLLM counts them, from the config alone.

    Source: vLLM's models/llava.py (get_num_image_tokens), vision.py (get_num_selected_vision_tokens), clip.py and
    siglip.py (EncoderInfo.get_num_image_tokens).
    """
    vision = config["vision_config"]
    grid = (vision["image_size"] // vision["patch_size"]) ** 2
    encoder = grid + {"clip_vision_model": 1, "siglip_vision_model": 0}[vision["model_type"]]
    return {"default": encoder - 1, "full": encoder}[config["vision_feature_select_strategy"]]


VLLM_NAMES = (
    # Source: vLLM's models/llava.py: the modules of LlavaForConditionalGeneration, below them those of
    # Qwen2ForCausalLM and LlamaForCausalLM, of CLIPVisionModel and SiglipVisionModel (both `vision_model.`)
    r"language_model\.model\.(embed_tokens|norm|layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj"
    r"|input_layernorm|post_attention_layernorm))\.(weight|bias)"
    r"|language_model\.lm_head\.weight"
    r"|multi_modal_projector\.linear_[12]\.(weight|bias)"
    r"|vision_tower\.vision_model\.(embeddings\.(class_embedding|(patch|position)_embedding\.(weight|bias))"
    r"|(pre_layrnorm|post_layernorm)\.(weight|bias)"
    r"|encoder\.layers\.\d+\.(self_attn\.([qkv]|out)_proj|mlp\.fc[12]|layer_norm[12])\.(weight|bias))"
)


@pytest.mark.parametrize("language", ["qwen2", "llama"])
@pytest.mark.parametrize(("tower", "select"), KINDS)
def test_what_vllm_reads_is_there_and_agrees(parts, tmp_path, tower, select, language):
    mine = student(parts, tower, select, language)
    folder = written(tmp_path, mine)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    # the language model's class is found by this, and by nothing else
    assert config["text_config"]["architectures"] == [f"{language.capitalize()}ForCausalLM"]
    assert config["projector_hidden_act"] == "gelu" and config["multimodal_projector_bias"] is True
    assert config["vision_feature_layer"] == -2

    processor = AutoProcessor.from_pretrained(folder)
    assert type(processor).__name__ == "LlavaProcessor" and processor.image_token == "<image>"
    assert processor.tokenizer.convert_tokens_to_ids("<image>") == config["image_token_index"]
    assert processor.patch_size == config["vision_config"]["patch_size"]
    assert processor.vision_feature_select_strategy == config["vision_feature_select_strategy"] == select
    assert processor.num_additional_image_tokens == (1 if tower == "clip" else 0)
    assert dict(processor.image_processor.crop_size) == SQUARE
    size = dict(processor.image_processor.size)
    assert size in ({"shortest_edge": SIDE}, SQUARE)

    # three counts: vLLM's own, transformers' from sizes (vLLM's fallback to transformers asks that), and the text's
    inputs = processor(images=picture(), text="<image>", return_tensors="pt")
    counted = int((inputs["input_ids"] == config["image_token_index"]).sum())
    from_sizes = processor._get_num_multimodal_tokens(image_sizes=[(60, 80)])["num_image_tokens"]
    assert (
        vllm_tokens(config)
        == counted
        == from_sizes[0]
        == config["image_seq_length"]
        == mine.inputs.usual.text.count("<image>")
    )
    assert inputs["pixel_values"].shape[2:] == (SIDE, SIDE)  # vLLM checks that they are image_size

    with safe_open(folder / "model.safetensors", "pt") as held:
        names = set(held.keys())
        rows = held.get_slice("language_model.model.embed_tokens.weight").get_shape()[0]
    assert [name for name in names if not re.fullmatch(VLLM_NAMES, name)] == []
    assert rows == config["text_config"]["vocab_size"] > config["image_token_index"]
    tied = config["text_config"]["tie_word_embeddings"]
    assert tied == config["tie_word_embeddings"] == (language == "qwen2")
    assert ("language_model.lm_head.weight" in names) is not tied
    if tower == "siglip":  # a pooling head would be expected in the weights
        assert config["vision_config"]["vision_use_head"] is False


@pytest.mark.parametrize("template", [name for name in TEMPLATES if name != "llama"])
def test_vllm_sees_that_messages_come_in_parts(parts, tmp_path, template):
    """Source: vLLM looks for a loop over a message's `content` in the template (its "openai" content format)."""
    folder = written(tmp_path, student(parts), template)
    tree = jinja2.Environment().parse((folder / "chat_template.jinja").read_text())
    loops = [node.iter for node in tree.find_all(jinja2.nodes.For)]
    messages = {
        node.target.name
        for node in tree.find_all(jinja2.nodes.For)
        if isinstance(node.iter, jinja2.nodes.Name) and node.iter.name == "messages"
    }
    assert any(
        isinstance(over, jinja2.nodes.Getattr) and over.attr == "content" and over.node.name in messages
        for over in loops
        if isinstance(over, jinja2.nodes.Getattr) and isinstance(over.node, jinja2.nodes.Name)
    )


# --- transformers before 5


@pytest.mark.parametrize("language", ["qwen2", "llama"])
def test_what_releases_before_5_read_is_there(parts, tmp_path, language):
    folder = written(tmp_path, student(parts, "clip", "default", language))
    config = json.loads((folder / "config.json").read_text())
    assert config["text_config"]["rope_theta"] == THETA  # 5 writes it into rope_parameters only, and reads it there
    again = AutoConfig.from_pretrained(folder)
    assert getattr(again.text_config, "rope_parameters", config["text_config"])["rope_theta"] == THETA
    told = json.loads((folder / "tokenizer_config.json").read_text())
    assert told["tokenizer_class"] in ("PreTrainedTokenizerFast", "Qwen2Tokenizer")
    assert not isinstance(told.get("extra_special_tokens"), list)
    before = student(parts, "clip", "default", language).inputs.processor.tokenizer
    after = AutoTokenizer.from_pretrained(folder)
    assert after.get_vocab() == before.get_vocab()
    assert set(after.all_special_tokens) == set(before.all_special_tokens)
    alone = json.loads((folder / "preprocessor_config.json").read_text())
    inside = json.loads((folder / "processor_config.json").read_text()).get("image_processor", alone)
    # without a name 4.57 finds no processor by this file alone
    assert alone == inside | {"processor_class": "LlavaProcessor"}
    # an unnamed class of tokenizers asks for token types as well, with which no LLaVA model generates
    assert told["model_input_names"] == ["input_ids", "attention_mask"]
    assert alone["image_processor_type"] == "CLIPImageProcessor"
    assert AutoImageProcessor.from_pretrained(folder).crop_size == SQUARE


def test_no_path_of_the_machine_is_written(parts, tmp_path):
    for file in written(tmp_path, student(parts)).glob("*.json*"):
        assert str(parts) not in file.read_text(), file.name


# --- LDPNetV2


@pytest.mark.slow
def test_ldpnetv2_is_refused_by_transformers_alone_and_read_with_the_import(parts, tmp_path):
    folder = written(tmp_path, student(parts, "clip", "default", "qwen2", "ldpnetv2"))
    read = "from transformers import AutoModelForImageTextToText as M; print(type(M.from_pretrained({!r})).__name__)"
    read = read.format(str(folder))
    alone = subprocess.run([sys.executable, "-c", read], check=False, capture_output=True, text=True, timeout=300)
    assert alone.returncode and "llava_ldpnetv2" in alone.stderr
    code = f"import switchkd_cli.engine.models.ldpnet; {read}"
    known = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=300)
    assert known.stdout.split() == ["LlavaLdpForConditionalGeneration"], known.stderr[-2000:]
