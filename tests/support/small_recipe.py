"""A small recipe that is valid without any engine, for the tests of the light zone."""

from pathlib import Path

TEXT = """\
title: small
student: {family: llava, vision: MODEL, language: MODEL}
teacher: {family: llava, checkpoint: MODEL}
data:
  captions: {source: llava_json, parameters: {file: captions.json, images: pictures}}
  questions: {source: llava_json, parameters: {file: questions.json, images: pictures, limit: 8}}
stages:
  - {name: pretrain, data: captions, train: [projector], lr: 1e-3, batch: 8, steps: 4, objective: [{loss: cross_entropy}]}
  - name: distill
    data: questions
    train: [vision, projector, language]
    lr: 1e-3
    lr_scale: {vision: 0.3}
    batch: 8
    steps: 10
    objective:
      - {name: ce, loss: cross_entropy}
      - {name: align, loss: dbild, to: teacher, on: answer, parameters: {temperature: 2}}
      - {name: vsd, loss: dbild, of: switch, to: teacher, weight: 0.5}
evaluation: {benchmarks: [mme, pope], items: 4}
controls: [sft]
rows:
  switch-kd: {title: Switch-KD, paper: {gqa: 61.6, average: 60.1}}
  sft: {title: SFT, drop: [align, vsd]}
  long: {drop: [vsd], set: {stages.distill.steps: 20, stages.distill.objective.align.weight: 2.0}}
"""


def write(folder: Path, *changes: tuple[str, str]) -> Path:
    """The recipe as `small.yaml`, each (old, new) replaced once; its models are an empty checkpoint folder."""
    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text("{}")
    text = TEXT.replace("MODEL", str(model))
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    file = folder / "small.yaml"
    file.write_text(text)
    return file
