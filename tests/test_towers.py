"""A student's vision tower may be that of a whole checkpoint: the encoder-substitution rows start from it."""

import pytest
import torch
from tinyllava_format import config, state, write_fine_tuned, write_pre_trained, write_tower

from switchkd_cli.engine import checkpoint
from switchkd_cli.engine.build import check_checkpoint, check_model
from switchkd_cli.recipe.schema import Parts
from tests import tiny

LANGUAGE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
LANGUAGE |= {"num_key_value_heads": 2, "tie_word_embeddings": True}


@pytest.mark.parametrize("layout", ["huggingface", "fine-tuned", "pre-trained"])
def test_the_tower_of_a_whole_checkpoint_is_taken_with_its_weights_and_its_pictures(layout, tmp_path):
    if layout == "huggingface":
        checkpoint.save(tiny.model(), tmp_path / "whole")
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
    assert ours.processor.image_processor.to_dict() == theirs.processor.image_processor.to_dict()
    took, had = (b.build().model.model.vision_tower.state_dict() for b in (ours, theirs))
    assert took.keys() == had.keys()
    for name, tensor in had.items():
        torch.testing.assert_close(took[name], tensor, rtol=0, atol=0)
