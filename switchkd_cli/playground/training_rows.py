"""The embedded world as training data: LLaVA-1.5 JSON with its pictures, or text alone."""

import json
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from switchkd_cli.errors import UserError
from switchkd_cli.files.hashes import digest_of
from switchkd_cli.playground.text.lessons import lesson
from switchkd_cli.playground.text.questions import STYLES, ask, prompt, suits
from switchkd_cli.playground.text.tellings import telling
from switchkd_cli.playground.world import SPLITS, Scene, draw, scenes

VERSION = 1  # of the rows; raise it when the same request writes something else
IMAGE = "<image>\n"
MANIFEST = "manifest.json"

Turn = tuple[str, str]


def _question(scene: Scene, rng: random.Random) -> Turn:
    """A question of any style as its benchmark puts it; styles with more to learn are asked more often."""
    style = rng.choices(STYLES, weights=[_WEIGHTS.get(style, 1.0) for style in STYLES])[0]
    if not suits(scene, style):
        style = "gqa"
    question = ask(scene, style, rng)
    return prompt(question), question.answer


def _instruction(scene: Scene, rng: random.Random) -> Turn:
    """A question, or now and then a telling: instruction mixes hold descriptions among their questions too."""
    return telling(scene, rng) if rng.random() < _TOLD else _question(scene, rng)


_TOLD = 0.35
_WEIGHTS = {"gqa": 1.5, "vqav2_val": 1.5, "textvqa_val": 2.0}

# What one turn of each kind of row is: (scene, rng) -> (the user's text, the answer).
KINDS: dict[str, Callable[[Scene, random.Random], Turn]] = {
    "questions": _question,
    "captions": telling,
    "instructions": _instruction,
    "text": lesson,
}


def write_rows(folder: Path, *, kind: str, split: str, pictures: int, turns: int, seed: int) -> Path:
    """Write `pictures` rows of `turns` turns each and return the path of rows.json.

    Images are relative to the folder; rows of kind "text" have none. A folder that already holds the same
    request is left as it is, one with another request's rows is replaced; the new one appears complete or not
    at all.
    Raises UserError for an unknown kind or split, a number below 1, or a folder of files that are not ours.
    """
    request = {
        "version": VERSION,
        "kind": kind,
        "split": split,
        "pictures": pictures,
        "turns": turns,
        "seed": seed,
    }
    _check(request)
    folder = Path(folder)
    if _holds(folder, request):
        return folder / "rows.json"
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _build(building, request)
        building.chmod(0o755)
        if not _holds(folder, request):  # another process may have been faster, and may be reading it already
            if (folder / MANIFEST).exists():
                shutil.rmtree(folder)
            building.rename(folder)
    except OSError:
        if not _holds(folder, request):
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder / "rows.json"


def _check(request: dict) -> None:
    problems = [
        f"playground: {name}: must be one of {', '.join(known)}, got {request[name]!r}"
        for name, known in (("kind", KINDS), ("split", SPLITS))
        if request[name] not in known
    ]
    problems += [
        f"playground: {name}: must be at least 1, got {request[name]!r}"
        for name in ("pictures", "turns")
        if request[name] < 1
    ]
    if problems:
        raise UserError(problems)


def _holds(folder: Path, request: dict) -> bool:
    manifest = folder / MANIFEST
    if manifest.exists():
        return json.loads(manifest.read_text(encoding="utf-8")) == {**request, "files": drawn(folder)}
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: holds files that are not the playground's", hint="choose another folder")
    return False


def drawn(folder: Path) -> str:
    """A digest of the files that were written with a manifest: what has changed since is written anew."""
    files = (str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    return digest_of(folder, sorted(name for name in files if name != MANIFEST))


def _build(folder: Path, request: dict) -> None:
    with_pictures = request["kind"] != "text"
    if with_pictures:
        (folder / "images").mkdir()
    rows = []
    for scene in scenes(request["split"], request["pictures"], request["seed"]):
        rng = random.Random(f"{request['kind']}-{scene.id}")
        row = {"id": f"{request['kind']}-{scene.id}"}
        turns = _turns(scene, KINDS[request["kind"]], request["turns"], rng)
        if with_pictures:
            row["image"] = f"images/{scene.id}.png"
            draw(scene).save(folder / row["image"], compress_level=1)
            turns[0] = (IMAGE + turns[0][0], turns[0][1])
        row["conversations"] = [
            {"from": speaker, "value": value}
            for turn in turns
            for speaker, value in zip(("human", "gpt"), turn, strict=True)
        ]
        rows.append(row)
    (folder / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    (folder / MANIFEST).write_text(json.dumps({**request, "files": drawn(folder)}), encoding="utf-8")


def _turns(scene: Scene, make: Callable, count: int, rng: random.Random) -> list[Turn]:
    """`count` turns, repeats redrawn a few times: small scenes do not have endless questions."""
    turns: list[Turn] = []
    for _ in range(count):
        turn = make(scene, rng)
        for _ in range(4):
            if turn not in turns:
                break
            turn = make(scene, rng)
        turns.append(turn)
    return turns
