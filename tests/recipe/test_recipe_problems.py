"""Every mistake of a recipe is reported at once, with its line and what was near."""

import json

import pytest

from switchkd_cli import registry
from switchkd_cli.errors import UserError
from switchkd_cli.recipe.load import load, load_rows
from switchkd_cli.recipe.validate import check
from tests.support.small_recipe import write

ALIGN = "loss: dbild, to: teacher, on: answer, parameters: {temperature: 2}"
STEPS = "    steps: 10\n"
VSD = "to: teacher, weight: 0.5}"


def problems(file, *arguments, **more):
    with pytest.raises(UserError) as caught:
        load(file, *arguments, **more)
    return [problem.removeprefix(f"{file}:") for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("title: small", "titel: small", "1: titel: unknown key, got 'titel' (did you mean 'title'?)"),
        ("title: small", "titel: small", "1: title: missing"),
        ("title: small", "title: [a]", "1: title: must be text, got a list"),
        (
            "lr_scale",
            "lr_scales",
            "13: stages.distill.lr_scales: unknown key, got 'lr_scales' (did you mean 'lr_scale'?)",
        ),
        ("family: llava", "family: lava", "2: student.family: unknown family, got 'lava' (did you mean 'llava'?)"),
        (
            "checkpoint:",
            "chekpoint:",
            "3: teacher.chekpoint: unknown key, got 'chekpoint' (did you mean 'checkpoint'?)",
        ),
        ("steps: 10", "steps: ten", "15: stages.distill.steps: must be a whole number, got 'ten'"),
        ("steps: 10", "steps: true", "15: stages.distill.steps: must be a whole number, got True"),
        ("steps: 10", "steps: 0", "15: stages.distill.steps: must be greater than or equal to 1, got 0"),
        ("steps: 10", "steps: 1.5", "15: stages.distill.steps: must be a whole number, got 1.5"),
        ("steps: 10", "epochs: -1", "15: stages.distill.epochs: must be greater than 0, got -1"),
        ("steps: 10", "epochs: .nan", "15: stages.distill.epochs: must be a finite number, got nan"),
        ("steps: 10", "warmup: 0", "9: stages.distill.steps: a stage takes either steps or epochs, got neither"),
        (
            "steps: 10",
            "steps: 10\n    epochs: 1",
            "15: stages.distill.steps: a stage takes either steps or epochs, got both",
        ),
        (
            "batch: 8\n",
            "batch: 8\n    micro_batch: 3\n",
            "15: stages.distill.micro_batch: must divide batch (8), got 3",
        ),
        (
            "data: questions",
            "data: question",
            "10: stages.distill.data: unknown data set, got 'question' (did you mean 'questions'?)",
        ),
        ("weight: 0.5", "weight: {form: 0, to: 1}", "vsd.weight.form: unknown key, got 'form' (did you mean 'from'?)"),
        (
            "weight: 0.5",
            "weight: {learned: 1, to: 2}",
            "weight.to: unknown key, got 'to' (known: from, learned, lr, over)",
        ),
        ("teacher: {family: llava", "teacher: {bits: 3, family: llava", "3: teacher.bits: must be one of 4, 8, got 3"),
        ("dbild, of: switch", "advantage", "vsd.loss: unknown path, which advantage reads, got 'reference'"),
        ("dbild, of: switch", "affinity", "vsd.on: affinity compares visual tokens with text: 'all', got 'answer'"),
        ("dbild, of: switch", "top_k_kl, parameters: {k: 0}", "vsd.parameters.k: must be greater than 0, got 0"),
        (
            "name: distill",
            "name: pretrain",
            "9: stages.pretrain.name: stages need different names, got 'pretrain' twice",
        ),
        (
            "[vision, projector",
            "[visoin, projector",
            (
                "11: stages.distill.train.0: must be one of vision, projector, language, adapter, got 'visoin' "
                "(did you mean 'vision'?)"
            ),
        ),
        (
            "[vision, projector, l",
            "[vision, vision, l",
            "11: stages.distill.train: trained parts need different names, got 'vision' twice",
        ),
        (
            "[vision, projector",
            "[projector",
            "13: stages.distill.lr_scale.vision: the stage does not train it, got 'vision' (trained: projector, language)",
        ),
        (
            "[vision, projector",
            "[projector",
            "19: stages.distill.objective.vsd.of: the switch trains only vision, the stage only projector, language, got 'switch'",
        ),
        (
            "lr_scale: {vision: 0.3}",
            "lr_scale: {vision: 0.0}",
            "13: stages.distill.lr_scale.vision: trains nothing of it: take it out of train instead, got 0.0",
        ),
        (
            "loss: dbild, to",
            "loss: dbld, to",
            "18: stages.distill.objective.align.loss: unknown loss, got 'dbld' (did you mean 'dbild'?)",
        ),
        (
            "temperature: 2",
            "temprature: 2",
            "18: stages.distill.objective.align.parameters.temprature: dbild takes no such parameter, got 'temprature' (did you mean 'temperature'?)",
        ),
        (
            "temperature: 2",
            "temperature: hot",
            "18: stages.distill.objective.align.parameters.temperature: must be a number, got 'hot'",
        ),
        (
            "temperature: 2",
            "temperature: true",
            "18: stages.distill.objective.align.parameters.temperature: must be a number, got True",
        ),
        (
            "dbild, to: teacher",
            "dbild",
            "18: stages.distill.objective.align.to: dbild compares two models' logits, got 'labels' (did you mean 'teacher'?)",
        ),
        (
            "loss: dbild, to: teacher, on: answer",
            "loss: feature_mse, on: answer",
            "18: stages.distill.objective.align.to: feature_mse compares two models' features, got 'labels' (did you mean 'teacher'?)",
        ),
        (
            "name: ce, loss: cross_entropy",
            "name: ce, loss: cross_entropy, to: teacher",
            "17: stages.distill.objective.ce.to: cross_entropy compares with the labels, got 'teacher' (did you mean 'labels'?)",
        ),
        (
            "dbild, to: teacher",
            "dbild, to: student",
            "18: stages.distill.objective.align.to: a term compares two different things, got 'student' twice",
        ),
        (
            "name: vsd, loss: dbild, of: switch",
            "name: vsd, loss: dbild, of: teacher",
            "19: stages.distill.objective.vsd.to: a term compares two different things, got 'teacher' twice",
        ),
        (
            "name: vsd",
            "name: align",
            "19: stages.distill.objective.align.name: terms need different names, got 'align' twice",
        ),
        (
            "weight: 0.5",
            "weight: -1",
            "19: stages.distill.objective.vsd.weight: must be greater than or equal to 0, got -1",
        ),
        (
            "on: answer",
            "on: answers",
            "18: stages.distill.objective.align.on: must be one of answer, text, image, all, chosen, rejected, pair, got 'answers' (did you mean 'answer'?)",
        ),
        (
            "source: llava_json",
            "source: llava_jsn",
            "5: data.captions.source: unknown source, got 'llava_jsn' (did you mean 'llava_json'?)",
        ),
        ("{file: captions.json, ", "{", "5: data.captions.parameters.file: missing: llava_json needs it"),
        (
            "file: captions.json",
            "file: 3",
            "5: data.captions.parameters.file: must be text or must be a valid list, got 3",
        ),
        (
            "source: llava_json,",
            "source: llava_json, template: qwen_base,",
            "5: data.captions.template: unknown template, got 'qwen_base' (did you mean 'qwen2_base'?)",
        ),
        (
            "questions: {source: llava_json,",
            "questions: {source: llava_json, template: pretrain,",
            (
                "6: data.questions.template: leaves questions out, and the last stage trains with it: "
                "the model could not be scored, got 'pretrain'"
            ),
        ),
        (
            "source: llava_json,",
            "source: llava_json, max_faults: 1.0,",
            "5: data.captions.max_faults: must be less than 1, got 1.0",
        ),
        (
            "source: llava_json,",
            "source: llava_json, max_length: 0,",
            "5: data.captions.max_length: must be greater than or equal to 1, got 0",
        ),
        (
            "data: questions\n",
            "data: questions\n    group_by: length\n",
            "11: stages.distill.group_by: must be one of modality_length, got 'length' (did you mean 'modality_length'?)",
        ),
        ("limit: 8", "limit: many", "6: data.questions.parameters.limit: must be a whole number, got 'many'"),
        ("limit: 8", "limit: 0", "6: data.questions.parameters.limit: must be greater than 0, got 0"),
        (
            "[mme, pope]",
            "[mme, popes]",
            "20: evaluation.benchmarks.1: unknown benchmark, got 'popes' (did you mean 'pope'?)",
        ),
        (
            "[mme, pope], items: 4",
            "[mme]",
            "20: evaluation.items: missing: the playground has no fixed number of questions",
        ),
        (
            "title: small",
            "title: small\ndeepspeed: {zero: 2, offload: parameters}",
            "2: deepspeed.offload: needs zero: 3 or more, got 'parameters'",
        ),
        (
            "title: small",
            "title: small\ndeepspeed: {offload: optimizer}",
            "2: deepspeed.offload: needs zero: 1 or more, got 'optimizer'",
        ),
        ("controls: [sft]", "controls: [stf]", "21: controls.0: unknown row, got 'stf' (did you mean 'sft'?)"),
        (
            "gqa: 61.6",
            "gqaa: 61.6",
            "23: rows.switch-kd.paper.gqaa: unknown benchmark, got 'gqaa' (did you mean 'gqa'?)",
        ),
        (
            "drop: [align, vsd]",
            "drop: [aling, vsd]",
            "24: rows.sft.drop: no such term, got 'aling' (did you mean 'align'?)",
        ),
        (
            "stages.distill.steps",
            "stages.distil.steps",
            "25: rows.long.set.stages.distil.steps: no such field in stages, got 'distil' (did you mean 'distill'?)",
        ),
        (
            "stages.distill.steps",
            "stages.distill.stepz",
            "25: stages.distill.stepz: unknown key, got 'stepz' (did you mean 'steps'?)",
        ),
        (
            "stages.distill.steps: 20",
            "stages.distill.steps: 0",
            "25: stages.distill.steps: must be greater than or equal to 1, got 0",
        ),
        ("  sft:", "  s.ft:", "24: rows.s.ft: a name is a letter, then letters, digits, - or _, got 's.ft'"),
        ("title: small", "title: small\ntitle: again", "2: title: written twice (first at"),
        ("title: small", "title: &a small", None),
        ("title: small", "title: !!python/name:os.system", "1: tags are not read"),
        ("title: small", "title: *a", "1: not readable as YAML: aliases are not read"),
        ("title: small", "title: [small", "not readable as YAML"),
    ],
)
def test_a_mistake_is_named(tmp_path, old, new, expected):
    file = write(tmp_path, (old, new))
    if expected is None:
        load(file)
    else:
        assert any(expected in problem for problem in problems(file)), problems(file)


OUT_OF_RANGE = {
    "jensen_shannon": [({"beta": beta}, "beta: must be") for beta in (0, 1, 2, -0.5)],
    "skewed_kl": [({"alpha": alpha}, "alpha: must be") for alpha in (0, 1, -0.5)],
    "skewed_reverse_kl": [({"alpha": alpha}, "alpha: must be") for alpha in (0, 1, -0.5)],
    "taid": [({"start": 0.9, "end": 0.1}, "end: must be at least start (0.9), got 0.1"), ({"start": 1.1}, "start: must be less than")],
    "taid_adaptive": [({"end": 0.3}, "end: must be at least start (0.4), got 0.3")],
    "partial_ranking": [({"k": 1}, "k: must be greater than or equal to 2, got 1")],
    "bild": [({"k": 0}, "k: must be greater than 0, got 0")],
    "dbild": [({"min_k": 5, "max_k": 4}, "max_k: must be at least min_k (5), got 4"), ({"min_k": 0}, "min_k"), ({"window": 0}, "window")],
    "attended_token_mse": [({"k": 0}, "k: must be greater than 0")],
    "attention_cosine": [({"first": 0.7}, "last: must be above first (0.7), got 0.7"), ({"first": 0.7, "last": 0.3}, "last: must be above")],
}  # fmt: skip


@pytest.mark.parametrize("loss", OUT_OF_RANGE)
def test_parameters_of_a_loss_outside_the_range_that_it_declares_are_told_with_the_recipe(tmp_path, loss):
    for given, expected in OUT_OF_RANGE[loss]:
        found = problems(write(tmp_path, (ALIGN, f"loss: {loss}, to: teacher, parameters: {json.dumps(given)}")))
        assert any(f"align.parameters.{expected}" in problem for problem in found), found


@pytest.mark.parametrize(
    "loss", [n for n in registry.LOSSES if "temperature" in registry.signature("loss", n).keywords]
)
def test_no_temperature_is_0(loss):
    stage = {"objective": [{"loss": loss, "to": "teacher", "parameters": {"temperature": 0}}]}
    found = {path[-1]: text for path, text in check({"stages": [stage]})}
    assert found["temperature"] == "must be greater than 0, got 0"


def test_a_mixer_has_no_more_rounds_than_the_stage_has_steps(tmp_path):
    rounds = "    mixer: {by: divergence, rounds: ROUNDS, candidates: 2}\n"
    load(write(tmp_path, (STEPS, STEPS + rounds.replace("ROUNDS", "10"))))
    (found,) = problems(write(tmp_path, (STEPS, STEPS + rounds.replace("ROUNDS", "11"))))
    assert found.endswith("mixer.rounds: a round takes a step or more, and the stage has 10: got 11")


@pytest.mark.parametrize(
    "changes",
    [
        (VSD, "to: teacher, focus: {by: switch_gap}}"),
        (STEPS, STEPS + "    mixer: {by: divergence, rounds: 2, candidates: 2}\n"),
        (STEPS, STEPS + "    mixer: {by: divergence, rounds: 2, variants: 2}\n"),
    ],
)
def test_a_resolved_recipe_is_a_recipe_with_the_defaults_written_out(tmp_path, changes):
    run = load(write(tmp_path, changes))
    (tmp_path / "resolved").mkdir()
    (tmp_path / "resolved" / "small.yaml").write_text(run.text)
    assert load(tmp_path / "resolved" / "small.yaml").key == run.key


def test_a_field_that_is_broken_is_told_once(tmp_path):
    """What would follow from a default in its place is not told."""
    for old, new in (
        ("steps: 4", "epochs: -1"),
        ("{file: captions.json, images: pictures}", "3"),
        ("train: [vision, p", "train: [visin, p"),
    ):
        assert len(problems(write(tmp_path, (old, new)))) == 1


def test_all_mistakes_come_at_once_in_the_order_of_the_file(tmp_path):
    file = write(
        tmp_path,
        ("family: llava", "family: lava"),
        ("steps: 10", "steps: ten"),
        ("loss: dbild, to", "loss: dbld, to"),
        ("drop: [align, vsd]", "drop: [nothing]"),
        ("stages.distill.steps: 20", "stages.distill.steps: 0"),
    )
    found = problems(file, "swich-kd", ["stages.pretrain"])
    assert [problem.split(":")[0] for problem in found] == [" row", "override", "2", "15", "18", "24", "25"]


def test_a_broken_row_is_reported_when_another_is_asked_for(tmp_path):
    file = write(tmp_path, ("stages.distill.steps: 20", "stages.distill.steps: 0"))
    assert problems(file, "sft") == ["25: stages.distill.steps: must be greater than or equal to 1, got 0"]


def test_a_problem_that_all_rows_share_is_reported_once(tmp_path):
    assert len(problems(write(tmp_path, ("lr: 1e-3, batch", "lr: fast, batch")))) == 1


def test_terms_need_a_teacher(tmp_path):
    file = write(tmp_path, ("teacher: {family", "#: {family"))
    found = problems(file)
    assert "18: stages.distill.objective.align.to: the recipe has no teacher, got 'teacher'" in found
    assert "19: stages.distill.objective.vsd.of: the recipe has no teacher, got 'switch'" in found


def test_a_trained_part_needs_a_term_that_trains_it(tmp_path):
    file = write(tmp_path, ("      - {name: ce, loss: cross_entropy}\n", ""), ("drop: [align, vsd]", "drop: [align]"))
    found = problems(file, "sft")
    assert "11: stages.distill.train: no term of the objective trains it, got 'projector'" in found
    assert "11: stages.distill.train: no term of the objective trains it, got 'language'" in found


def test_a_term_of_weight_0_trains_nothing(tmp_path):
    """Beside others it is only looked at."""
    silent = ("{name: ce, loss: cross_entropy}", "{name: ce, loss: cross_entropy, weight: 0}")
    file = write(tmp_path, silent, ("drop: [align, vsd]", "drop: [vsd]"))
    load(file)
    found = problems(file, None, ["stages.distill.objective.align.weight=0"])
    told = "11: stages.distill.train: no term of the objective trains it (terms of weight 0 aside), got"
    assert f"{told} 'projector'" in found and f"{told} 'language'" in found


BYTES = {
    "loss: alm, to: teacher": "alm compares bytes, got 'positions' (did you mean 'bytes'?)",
    "loss: alm, to: teacher, alignment: byte": "must be one of positions, bytes, got 'byte' (did you mean 'bytes'?)",
    "loss: forward_kl, to: teacher, alignment: bytes, on: text": (
        "bytes are compared in answers, got 'text' (did you mean 'answer'?)"
    ),
    "loss: token_mse, to: teacher, alignment: bytes": (
        "only what a student's and a teacher's tokens say is compared by bytes, got 'bytes'"
    ),
    "loss: forward_kl, of: switch, to: teacher, alignment: bytes": (
        "only what a student's and a teacher's tokens say is compared by bytes, got 'bytes'"
    ),
}


@pytest.mark.parametrize("term", BYTES)
def test_bytes_are_compared_of_a_student_s_and_a_teacher_s_answers(tmp_path, term):
    found = problems(write(tmp_path, (ALIGN, term)))
    assert [problem for problem in found if BYTES[term] in problem], found
    for right in ("loss: alm, to: teacher, alignment: bytes", "loss: dbild, to: switch, alignment: bytes"):
        load(write(tmp_path, (ALIGN, right)))


def test_a_term_on_pictures_has_no_positions_and_must_reach_what_is_trained(tmp_path):
    file = write(
        tmp_path,
        ("train: [vision, projector, language]", "train: [projector, language]"),
        ("    lr_scale: {vision: 0.3}\n", ""),
        (
            "loss: dbild, to: teacher, on: answer, parameters: {temperature: 2}",
            "loss: feature_mse, to: teacher, on: text",
        ),
        ("loss: dbild, of: switch, to", "loss: token_mse, to"),
    )
    assert problems(file) == [
        "17: stages.distill.objective.align.on: feature_mse compares whole images, no positions: leave it out, got 'text'",
        "17: stages.distill.objective.align.loss: trains only vision, the stage only projector, language, got 'feature_mse'",
    ]


def test_what_lies_behind_a_term_is_not_trained_by_it(tmp_path):
    file = write(
        tmp_path,
        ("      - {name: ce, loss: cross_entropy}\n", ""),
        ("loss: dbild, to: teacher, on: answer, parameters: {temperature: 2}", "loss: token_mse, to: teacher"),
    )
    assert "11: stages.distill.train: no term of the objective trains it, got 'language'" in problems(file)


def test_a_fresh_language_model_needs_a_tokenizer(tmp_path):
    file = write(tmp_path)
    assert problems(file, None, ["student.language={fresh: {hidden_size: 8}}"]) == [
        "2: student.tokenizer: missing: a fresh language model needs a tokenizer"
    ]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("stages.distill.lr", "override: stages.distill.lr: must be key=value, such as stages.distill.lr=1e-4"),
        ("stages.distill.lr=fast", "override: stages.distill.lr: must be a number, got 'fast'"),
        (
            "stages.distil.lr=1",
            "override: stages.distil.lr: no such field in stages, got 'distil' (did you mean 'distill'?)",
        ),
        ("stages.distill.lrr=1", "override: stages.distill.lrr: unknown key, got 'lrr' (did you mean 'lr'?)"),
        ("stages.distill.lr.x=1", "override: stages.distill.lr.x: stages.distill.lr is a value, it has no 'x'"),
        ("title=[", "override: title: not readable as YAML, got '['"),
        ("rows.sft.title=x", "override: rows.sft.title: rows are chosen with --row, or changed in the file"),
    ],
)
def test_overrides_are_checked_like_the_file(tmp_path, override, expected):
    assert problems(write(tmp_path), None, [override]) == [expected]


def test_an_unknown_row_is_named(tmp_path):
    file = write(tmp_path)
    assert problems(file, "stf") == [" row: unknown row, got 'stf' (did you mean 'sft'?)"]
    with pytest.raises(UserError, match="did you mean 'long'"):
        load_rows(file, ["lang"])


def test_the_seed_of_the_command_line_is_checked(tmp_path):
    assert problems(write(tmp_path), None, [], -1) == ["--seed: seed: must be greater than or equal to 0, got -1"]


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words", "\x00", "a: {b: [c}", "? [a]\n: b\n"])
def test_what_is_no_recipe_is_refused(tmp_path, text):
    file = tmp_path / "x.yaml"
    file.write_text(text)
    assert problems(file)


def test_a_missing_file_suggests_one(tmp_path):
    file = write(tmp_path)
    assert "did you mean" in problems(file.with_name("smal.yaml"))[0]
    assert "not readable" in problems(tmp_path)[0]


@pytest.mark.parametrize(
    ("validation", "expected"),
    [
        ("3", "validation: must be a mapping, got 3"),
        ("{data: others}", "validation.every_steps: missing"),
        (
            "{share: 0.1, every_step: 5}",
            "validation.every_step: unknown key, got 'every_step' (did you mean 'every_steps'?)",
        ),
        ("{every_steps: 5}", "validation.data: a validation takes either data or share, got neither"),
        (
            "{data: others, share: 0.1, every_steps: 5}",
            "validation.data: a validation takes either data or share, got both",
        ),
        ("{data: other, every_steps: 5}", "validation.data: unknown data set, got 'other' (did you mean 'others'?)"),
        (
            "{data: questions, every_steps: 5}",
            "validation.data: stage distill trains on it, name another or a share, got 'questions'",
        ),
        (
            "{data: captions, every_steps: 5}",
            "validation.data: stage pretrain trains on it, name another or a share, got 'captions'",
        ),
        ("{share: 1.0, every_steps: 5}", "validation.share: must be less than 1, got 1.0"),
        ("{share: 0, every_steps: 5}", "validation.share: must be greater than 0, got 0"),
        ("{share: 0.1, every_steps: 0}", "validation.every_steps: must be greater than or equal to 1, got 0"),
        ("{share: 0.1, every_steps: 5, rows: no}", "validation.rows: must be a whole number, got 'no'"),
        (
            "{share: 0.1, every_steps: 5, monitor: validation/los}",
            "validation.monitor: unknown figure, got 'validation/los' (did you mean 'validation/loss'?)",
        ),
        (
            "{share: 0.1, every_steps: 5, monitor: loss}",
            "validation.monitor: unknown figure, got 'loss' (known: validation/loss, validation/exact_match, validation/agreement, validation/loss/ce, validation/loss/align)",
        ),
    ],
)
def test_a_wrong_validation_is_told_with_its_line(tmp_path, validation, expected):
    others = ("  questions:", "  others: {source: llava_json, parameters: {file: others.json}}\n  questions:")
    found = problems(write(tmp_path, others, ("steps: 10", f"steps: 10\n    validation: {validation}")))
    assert f"17: stages.distill.{expected}" in found


def test_an_earlier_stage_must_not_train_on_a_later_one_s_validation(tmp_path):
    """Its `share` holds the same examples out of both; without it the last stage's would have been seen."""
    same = ("data: questions", "data: captions")
    ours = ("steps: 10", "steps: 10\n    validation: {share: 0.1, every_steps: 5}")
    (found,) = problems(write(tmp_path, same, ours))
    told = "stages.distill.validation.share: stage pretrain trains on these examples: it needs this share, got 0.1"
    assert found == f"16: {told}"
    theirs = ("steps: 4", "steps: 4, validation: {share: 0.1, every_steps: 2}")
    load(write(tmp_path, same, ours, theirs))


@pytest.mark.parametrize(
    ("best", "row", "validation", "expected"),
    [
        ("validation/loss", "switch-kd", "", "the last stage has no `validation`, got 'validation/loss'"),
        (
            "validation/lss",
            "switch-kd",
            "{share: 0.1, every_steps: 5}",
            "unknown figure, got 'validation/lss' (did you mean 'validation/loss'?)",
        ),
        (
            "validation/agreement",
            "sft",
            "{share: 0.1, every_steps: 5}",
            "no term of the stage reads the teacher, got 'validation/agreement'",
        ),
        (
            "validation/loss/algin",
            "switch-kd",
            "{share: 0.1, every_steps: 5}",
            "unknown figure, got 'validation/loss/algin' (did you mean 'validation/loss/align'?)",
        ),
    ],
)
def test_a_best_that_no_validation_gives_is_told_with_its_line(tmp_path, best, row, validation, expected):
    changes = [("title: small", f"title: small\ncheckpoints: {{best: {best}}}")]
    changes += [("steps: 10", f"steps: 10\n    validation: {validation}")] if validation else []
    assert f"2: checkpoints.best: {expected}" in problems(write(tmp_path, *changes), row)


@pytest.mark.parametrize("figure", ["loss", "loss/vsd", "agreement", "exact_match"])
def test_a_validation_s_figures_may_choose_the_best_and_be_waited_for(tmp_path, figure):
    validation = f"{{share: 0.1, every_steps: 5, patience: 3, monitor: validation/{figure}}}"
    file = write(
        tmp_path,
        ("title: small", f"title: small\ncheckpoints: {{best: validation/{figure}}}"),
        ("steps: 10", f"steps: 10\n    validation: {validation}"),
    )
    text = file.read_text()
    file.write_text(text[: text.index("controls:")])  # a row without these terms has not all of the figures
    assert load(file).config.stages[-1].validation.monitor == f"validation/{figure}"


ALL = "train: [vision, projector, language]"
ADDED = "train: [vision, projector, language, adapter]"
SWITCH = ("data:\n", "switch: {adapter: linear}\ndata:\n")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            [(ALL, ADDED)],
            "11: stages.distill.train: the recipe has none (add `switch: {adapter: linear}`), got 'adapter'",
        ),
        ([SWITCH], "12: stages.distill.train: the switch's adapter was never trained: add adapter here or before"),
        (
            [SWITCH, (ALL, ADDED), (", of: switch", "")],
            "12: stages.distill.train: no term of the objective trains it, got 'adapter'",
        ),
        (
            [SWITCH, ("lr_scale: {vision: 0.3}", "lr_scale: {adapter: 0.3}")],
            "14: stages.distill.lr_scale.adapter: the stage does not train it, got 'adapter'",
        ),
        ([("data:\n", "switch: {adapter: cubic}\ndata:\n")], "4: switch.adapter: must be one of linear, got 'cubic'"),
    ],
)
def test_an_adapter_is_there_and_trained_where_it_is_used(tmp_path, changes, expected):
    assert any(problem.startswith(expected) for problem in problems(write(tmp_path, *changes)))


def test_an_adapter_may_be_trained_before_and_then_stay_frozen(tmp_path):
    warm_up = "{name: warm, data: captions, train: [adapter], lr: 1e-3, batch: 8, steps: 4, objective: [VSD]}"
    term = "{name: vsd, loss: dbild, of: switch, to: teacher}"
    warmed = ("  - name: distill", f"  - {warm_up.replace('VSD', term)}\n  - name: distill")
    file = write(tmp_path, SWITCH, warmed, (", vsd]", "]"), ("drop: [vsd], ", ""))
    assert [run.config.stages[1].train for run in load_rows(file)] == [("adapter",)] * 3


def test_an_adapter_needs_a_teacher(tmp_path):
    file = write(tmp_path, SWITCH)
    text = "\n".join(line for line in file.read_text().splitlines() if not line.startswith("teacher:"))
    file.write_text(text)
    assert "3: switch.adapter: the recipe has no teacher, got 'linear'" in problems(file)


def test_a_recipe_without_an_adapter_has_the_keys_that_it_had(tmp_path):
    run = load(write(tmp_path))
    assert "switch" not in run.config.model_dump(mode="json") and "\nswitch:" not in run.text


OWN = "    answers: {own: 0.5}\n"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([(STEPS, STEPS + OWN + "    teacher_states: cached\n")], "teacher_states: own answers are new in every step"),
        ([(STEPS, STEPS + OWN), ("loss: cross_entropy}\n      - {name: align", "loss: cross_entropy, answers: own}\n      - {name: align")],
         "ce.answers: only given answers have labels, got 'own'"),
        ([(VSD, "to: teacher, answers: own}")], "vsd.answers: the stage gives no own answers"),
        ([(STEPS, STEPS + OWN.replace("0.5", "1.0"))], "answers.own: leaves ce no given answer, got 1.0"),
        ([(STEPS, STEPS + OWN), (ALIGN, "loss: forward_kl, to: teacher, alignment: bytes")],
         "align.alignment: own answers are compared at equal positions, got 'bytes'"),
        ([("loss: dbild, of: switch, to: teacher", "loss: feature_mse, to: teacher, answers: own"), (STEPS, STEPS + OWN)],
         "vsd.answers: feature_mse compares whole images: leave it out, got 'own'"),
        ([(ALIGN, "loss: preference, to: teacher")], "align.on: preference compares a preferred answer with a rejected one"),
        ([(ALIGN, "loss: preference, to: teacher, on: pair, focus: {by: teacher_right, share: 0.5}")],
         "align.focus: weights positions of logits, and preference compares pairs"),
        ([(STEPS, STEPS + OWN), (VSD, "to: teacher, answers: own}")], None),
        ([(STEPS, STEPS + OWN), (VSD, "to: teacher, on: chosen, answers: own}")], "vsd.answers: no own answer is preferred"),
        ([(STEPS, STEPS + OWN), (VSD, "to: teacher, focus: {by: teacher_right}}")],
         "vsd.answers: missing: it reads which tokens are right"),
        ([(STEPS, STEPS + OWN), (VSD, "to: teacher, answers: both, focus: {by: teacher_right}}")], None),
        ([(STEPS, STEPS + OWN), ("loss: dbild, of: switch", "loss: plackett_luce, of: switch")],
         "vsd.answers: missing: it reads which tokens are right"),
        ([(STEPS, STEPS + OWN + "    validation: {share: 0.1, every_steps: 1, monitor: validation/loss/vsd}\n"),
          (VSD, "to: teacher, answers: own}"), ("drop: [align, vsd]", "drop: [align]"), ("drop: [vsd], set", "set")],
         "validation.monitor: unknown figure, got 'validation/loss/vsd'"),
        ([("loss: dbild, of: switch", "loss: matched_kl, focus: {by: teacher_entropy}")],
         "vsd.focus: weights positions of logits, and matched_kl compares matches"),
    ],
)  # fmt: skip
def test_answers_of_terms_fit_those_of_the_stage(tmp_path, changes, expected):
    file = write(tmp_path, *changes)
    if expected is None:
        load(file)
    else:
        assert any(expected in problem for problem in problems(file)), problems(file)
