"""The vision tower: taken from a whole checkpoint, computed no further than its features, kept whole."""

import pytest
import torch

from switchkd_cli.engine.build import check_checkpoint, check_model
from switchkd_cli.recipe.schema import Parts
from tests.support import tiny
from tests.support.measured import clip_pair
from tests.support.tinyllava_format import config, state, write_fine_tuned, write_pre_trained, write_tower

LANGUAGE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
LANGUAGE |= {"num_key_value_heads": 2, "tie_word_embeddings": True}


@pytest.mark.parametrize("layout", ["huggingface", "fine-tuned", "pre-trained"])
def test_the_tower_of_a_whole_checkpoint_is_taken_with_its_weights_and_its_pictures(layout, tmp_path):
    if layout == "huggingface":
        tiny.model().save(tmp_path / "whole")
    else:
        told = config(str(write_tower(tmp_path / "tower", mean=0.4)))
        write = write_fine_tuned if layout == "fine-tuned" else write_pre_trained
        write(tmp_path / "whole", state(), told)
    theirs = check_checkpoint(str(tmp_path / "whole"), allow_pickle=True)
    spec = Parts(
        family="llava",
        vision=str(tmp_path / "whole"),
        language={"fresh": LANGUAGE},
        tokenizer="playground:tokenizer",
        allow_pickle=True,
    )
    ours = check_model(spec, "student")
    assert ours.inputs.processor.image_processor.to_dict() == theirs.inputs.processor.image_processor.to_dict()
    took, had = (b.build().model.model.vision_tower.state_dict() for b in (ours, theirs))
    assert took.keys() == had.keys()
    for name, tensor in had.items():
        torch.testing.assert_close(took[name], tensor, rtol=0, atol=0)


def siglip():
    return tiny.model()


def clip():
    return clip_pair().student


@pytest.mark.parametrize("select", ["full", "default"])
@pytest.mark.parametrize("layer", [-1, -2, -3])
@pytest.mark.parametrize("made", [siglip, clip])
def test_features_are_transformers_own_and_no_layer_behind_them_is_computed(made, layer, select):
    model = made()
    config, tower = model.model.config, model.model.model.vision_tower
    config.vision_feature_layer, config.vision_feature_select_strategy = layer, select
    side = config.vision_config.image_size
    pictures = torch.randn(2, 3, side, side)
    expected = tower(pictures, output_hidden_states=True).hidden_states[layer]
    computed = []
    for number, one in enumerate(tower.encoder.layers):
        one.register_forward_hook(lambda *_, number=number: computed.append(number))
    tower.post_layernorm.register_forward_hook(lambda *_: computed.append("last norm"))
    assert torch.equal(
        model.encode([{"pixel_values": each} for each in pictures]),
        expected[:, 1:] if select == "default" else expected,
    )
    assert computed == list(range(len(tower.encoder.layers) + 1 + layer))


def test_a_saved_model_has_all_layers_of_its_tower(tmp_path):
    model = tiny.model()
    model.encode([{"pixel_values": torch.randn(3, 24, 24)}])
    model.save(tmp_path / "model")
    again = check_checkpoint(str(tmp_path / "model")).build().model.state_dict()
    assert again.keys() == model.model.state_dict().keys()
    assert any("vision_tower.encoder.layers.2." in name for name in again)
    assert all(torch.equal(again[name], tensor) for name, tensor in model.model.state_dict().items())
