"""Every family of models passes the same tests: LLaVA, and a second one that is made up."""

import pytest
import torch

from switchkd_cli import registry
from switchkd_cli.engine.build import check_checkpoint
from switchkd_cli.errors import UserError
from tests.support import tiny, toy_family
from tests.support.family import FamilyTests


class TestLlava(FamilyTests):
    family = "llava"

    def student(self):
        return tiny.model(16, seed=1)

    def teacher(self):
        return tiny.model(24, layers=3, seed=2)

    def whole(self, model, batch):
        return model.model(
            input_ids=batch.input_ids, pixel_values=tiny.pixels(batch), attention_mask=batch.attention.long()
        ).logits


class TestToy(FamilyTests):
    family = toy_family.NAME

    @pytest.fixture(autouse=True)
    def registered(self, monkeypatch):
        monkeypatch.setitem(registry.FAMILIES, self.family, "tests.support.toy_family:TOY")

    def student(self):
        return toy_family.model(16, seed=1)

    def teacher(self):
        return toy_family.model(24, seed=2)

    def whole(self, model, batch):
        return model.model(batch.input_ids, [image["pixels"] for image in batch.images], batch.attention.long())

    # Its images have unlike numbers of tokens, and no map fits all of their grids.
    test_an_adapter_starts_as_nothing_and_learns_at_every_level = None

    def test_images_have_different_numbers_of_visual_tokens(self, tmp_path):
        student = self.student()
        batch = self.batch(student, tmp_path)
        tokens = student.project(student.encode(batch.images), batch.images)
        assert [len(each) for each in tokens] == [6, 5, 6]
        assert batch.position.shape == (2, *batch.input_ids.shape)


def test_a_family_that_does_not_exist_is_refused_and_another_s_checkpoint_is_not_taken(tmp_path, monkeypatch):
    tiny.model().save(tmp_path / "llava")
    monkeypatch.setitem(registry.FAMILIES, toy_family.NAME, "tests.support.toy_family:TOY")
    with pytest.raises(UserError, match="is no toy"):
        check_checkpoint(str(tmp_path / "llava"), family=toy_family.NAME)
    with pytest.raises(UserError, match="unknown family"):
        check_checkpoint(str(tmp_path / "llava"), family="flamingo")
    toy_family.model().save(tmp_path / "toy")
    with pytest.raises(UserError, match="toy"):
        check_checkpoint(str(tmp_path / "toy"), family="llava")
    assert isinstance(check_checkpoint(str(tmp_path / "toy")).build(), toy_family.Toy)
    assert torch.is_tensor(check_checkpoint(str(tmp_path / "llava")).build().head)
