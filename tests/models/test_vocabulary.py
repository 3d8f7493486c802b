"""What is read of a folder's words: its chat template wherever it lies, special tokens, and padding where it has none."""

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from switchkd_cli.engine.build import check_checkpoint, check_pair
from switchkd_cli.engine.hub import fetch
from switchkd_cli.engine.models.llava_parts import design
from switchkd_cli.engine.models.processors import IN_PARTS, read_tokenizer
from switchkd_cli.errors import UserError
from switchkd_cli.recipe.load import load
from switchkd_cli.recipe.named_files import ASSETS
from switchkd_cli.recipe.schema import Parts
from tests.support import tiny

TEMPLATE = (ASSETS / "tokenizer" / "chat_template.jinja").read_text(encoding="utf-8")
OTHER = "{{ messages[0].role }}"


@pytest.fixture
def folder(tmp_path) -> Path:
    """The shipped teacher without its chat template."""
    made = Path(shutil.copytree(ASSETS / "teacher", tmp_path / "model"))
    (made / "chat_template.jinja").unlink()
    return made


def tell(file: Path, **fields) -> None:
    told = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    file.write_text(json.dumps({k: v for k, v in (told | fields).items() if v is not None}), encoding="utf-8")


def named(folder: Path, **texts: str) -> None:
    tell(
        folder / "tokenizer_config.json",
        chat_template=[{"name": name, "template": text} for name, text in texts.items()],
    )


PLACES = {
    "chat_template.jinja": lambda f: (f / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8"),
    "chat_template.json": lambda f: tell(f / "chat_template.json", chat_template=TEMPLATE),
    "processor_config.json": lambda f: tell(f / "processor_config.json", chat_template=TEMPLATE),
    "tokenizer_config.json": lambda f: tell(f / "tokenizer_config.json", chat_template=TEMPLATE),
    "several by name": lambda f: named(f, tools=OTHER, default=TEMPLATE),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_chat_template_is_found_wherever_it_may_lie(folder, tmp_path, place):
    PLACES[place](folder)
    model = check_checkpoint(str(folder), "model").build()
    assert model.inputs.processor.chat_template == TEMPLATE
    model.save(tmp_path / "again")
    assert check_checkpoint(str(tmp_path / "again")).inputs.processor.chat_template == IN_PARTS + TEMPLATE


def test_a_folder_without_a_chat_template_or_a_default_one_can_not_be_asked(folder):
    for _ in range(2):
        with pytest.raises(UserError, match="no chat template, in its processor or its tokenizer") as refused:
            check_checkpoint(str(folder), "model")
        assert "chat_template.jinja" in refused.value.hint
        named(folder, tools=OTHER)


def test_a_teacher_that_is_not_scored_needs_no_chat_template(folder, tmp_path):
    """It reads what the student reads, and the data say how that is written."""
    recipe = (
        "title: t\n"
        "student: {family: llava, vision: playground:tower, language: playground:language,"
        " tokenizer: playground:tokenizer, feature_layer: -1}\n"
        f"teacher: {{family: llava, checkpoint: {folder}}}\n"
        "data: {mine: {source: llava_json, template: pretrain, parameters: {file: rows.json}}}\n"
        "stages: [{name: s, data: mine, train: [projector], lr: 1.0e-3, batch: 8, steps: 4,"
        " objective: [{name: kd, loss: forward_kl, to: teacher}]}]\n"
    )
    (tmp_path / "r.yaml").write_text(recipe, encoding="utf-8")
    (tmp_path / "rows.json").write_text("[]", encoding="utf-8")
    config = load(tmp_path / "r.yaml").config
    assert check_pair(config, with_teacher=True).teacher is not None
    scored = config.model_copy(update={"evaluation": object()})
    with pytest.raises(UserError, match="teacher: no chat template"):
        check_pair(scored, with_teacher=True)


def test_the_image_token_is_added_beside_the_special_tokens_there_are(tmp_path):
    """The end of a turn is among them: without it, a saved model never stops."""
    words = Qwen2Tokenizer().train_new_from_iterator(
        ["a dog"], 300, new_special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    )
    turns = [AddedToken(word, special=True, normalized=False) for word in ("<|im_start|>", "<|im_end|>")]
    words.add_special_tokens({"eos_token": "<|endoftext|>", "additional_special_tokens": turns})
    words.save_pretrained(tmp_path)
    read = read_tokenizer(fetch(str(tmp_path), "student.tokenizer"))
    assert set(read.all_special_tokens) == {*words.all_special_tokens, "<image>"}
    assert read.pad_token == "<|endoftext|>" == read.eos_token
    assert len(read) == len(words) + 1


def test_a_whole_folder_gets_a_padding_token_as_parts_do(folder):
    PLACES["tokenizer_config.json"](folder)
    tell(folder / "tokenizer_config.json", pad_token=None)
    assert AutoTokenizer.from_pretrained(folder).pad_token is None
    assert check_checkpoint(str(folder)).inputs.processor.tokenizer.pad_token == "<|end|>"


@pytest.mark.parametrize("head", ["its own", "the embeddings"])
def test_a_config_that_ties_a_head_of_its_own_to_the_embeddings_is_refused(tmp_path, head):
    """transformers keeps such a head, with a warning; a model of parts would lose what it was trained to say."""
    words = AutoTokenizer.from_pretrained(ASSETS / "tokenizer")
    sizes = dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_key_value_heads"), 2)
    config = Qwen2Config(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, tie_word_embeddings=False, **sizes
    )
    model = Qwen2ForCausalLM(config)
    if head == "the embeddings":
        model.lm_head.weight.data.copy_(model.model.embed_tokens.weight.data)
    model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    tell(tmp_path / "config.json", tie_word_embeddings=True)
    student = design(Parts(family="llava", vision={"fresh": tiny.VISION}, language=str(tmp_path)))
    if head == "the embeddings":
        return student.build() and None
    with pytest.raises(UserError, match="its config ties the head to the embeddings, its file has another head"):
        student.build()
