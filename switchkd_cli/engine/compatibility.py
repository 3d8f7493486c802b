"""Check that a model can be trained or evaluated, and that a teacher and a student fit together.

The checks need only configs, tokenizers and image processors, so they come before any weight is read.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from switchkd_cli.engine.data.prompt_template import end_token, special_tokens, tokens_after_answer
from switchkd_cli.engine.inputs import InputProcessor
from switchkd_cli.engine.models.blueprint import HINTS, Blueprint
from switchkd_cli.engine.models.shape import image_tokens_of
from switchkd_cli.errors import UserError
from switchkd_cli.files.hashes import short_hash
from switchkd_cli.planning.estimate import Misfit, PairFact
from switchkd_cli.recipe.schema import LEARNING, Stage, Term
from switchkd_cli.report.grouping import grouped


@dataclass(frozen=True)
class Vocabulary:
    """The logits that are compared: the first `shared` columns of the `student` and `teacher` columns of the heads.

    `own`: of the teacher it is as many, where each model reads a row as its own tokens.

    Heads are often padded to different widths (Qwen2.5: 151,936 and 152,064 for 151,665 tokens). A padding
    column is no token: it must never enter a softmax, a top-k or a knee.
    """

    shared: int
    student: int
    teacher: int | None = None
    own: int | None = None

    def __str__(self) -> str:
        each, own = ("each model reads its own tokens: ", f"the first {self.own:,} of ") if self.own else ("", "")
        teacher = "" if self.teacher is None else f" and {own}the teacher's {self.teacher:,}"
        return f"vocabulary: {each}the first {self.shared:,} of the student's {self.student:,}{teacher} logits are read"


def check_alone(model: Blueprint, who: str, *, needs_template: bool = True) -> None:
    """Raise UserError, naming every problem, where a model's config, tokenizer and image processor don't fit together.

    `needs_template`: its own chat template writes the conversations, so it is checked. It is not where every data set has
    a template: that of a language model may write no images (Qwen2.5's).
    """
    template = list(_template_problems(model.inputs)) if needs_template else []
    problems = (*template, *_tokenizer_problems(model), *model.problems())
    if problems:
        raise UserError([f"{who}: {problem}" for problem in problems], hint=HINTS["template"] if template else "")


def with_end_tokens(model: Blueprint, who: str) -> Blueprint:
    """Return the model with the end token that its chat template writes after an answer, and a note if that changes it.

    Where the template writes none, it is the tokenizer's end token. Of the other ids that the model's files name, one that
    is no special token stays only if the template writes it there: an ordinary word must not end an answer.
    """
    tokenizer, suffix = model.inputs.tokenizer, tokens_after_answer(model.inputs)
    end = end_token(tokenizer, suffix)
    source = "tokenizer" if end is None else "chat template"
    end = tokenizer.eos_token_id if end is None else end
    allowed = {*special_tokens(tokenizer).values(), *suffix}
    file_ends = [token for token in model.ends if token in allowed]
    ends = tuple(file_ends if end is None or end in file_ends else [*file_ends, end])
    if ends == model.ends:
        return model
    by_files, by_source, used = (_token_names(tokenizer, ids) for ids in (model.ends, [end], ends))
    note = f"{who}: its generation_config ends an answer with {by_files}, its {source} with {by_source}: here {used} ends one"
    return replace(model, ends=ends, notes=(*model.notes, *([note] if model.ends else ())))


def _token_names(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return " or ".join(f"{tokenizer.convert_ids_to_tokens(id)} ({id})" for id in ids)


def compare(student: Blueprint, teacher: Blueprint | None, terms: Iterable[Term] = ()) -> tuple[PairFact, ...]:
    """Return each property in which both models are compared; without a teacher none.

    Terms that compare features, or pass the student's features to the teacher, need vision towers that fit. Without them a
    teacher that reads its own tokens may be of any family.
    """
    if teacher is None:
        return ()
    terms = list(terms)
    users = [term.name for term in terms if "switch" in term.paths or "features" in term.kinds]
    facts = [_as_compared(fact, terms) if fact.name == TOKEN_COUNT else fact for fact in teacher.facts(student, users)]
    if shared_vocabulary(student, teacher, terms).own and not any(map(_compares_places, terms)):
        if not users and any(term.alignment == "bytes" for term in terms):  # each model sees its own images
            facts = [replace(fact, verdict="yes", difference="") for fact in facts]
        elif through_pictures(student, teacher) and not any("features" in term.kinds for term in terms):
            through = partial(replace, verdict="adapter", hint=HINTS["adapter"])
            facts = [through(fact) if fact.verdict == "impossible" else fact for fact in facts]
    templates = (model.inputs.chat_template for model in (student, teacher))
    ours, theirs = (short_hash(template)[:8] if template else "none" for template in templates)
    template = PairFact("chat template", ours, theirs)  # the teacher reads the student's text, or its own
    return *facts, _vocabulary_fact(student, teacher, terms), template


def through_pictures(student: Blueprint, teacher: Blueprint) -> bool:
    """Return whether the switch can give P_T the student's features of a whole image, resized, where towers are unlike.

    Each model then sees its own images. The teacher's features have to be those of whole images alone.
    """
    levels = student.feature_map.levels
    return student.as_picture() and teacher.as_picture(alone=True) and levels in (1, teacher.feature_map.levels)


def check_fit(facts: Sequence[PairFact], have: Collection[str] = ()) -> list[str]:
    """Return notes of differences that don't matter: too small, no term depends on them, or the recipe has what they need.

    Each is named with both values. `have`: verdicts that the recipe provides for (`Recipe.remedies`). Raises Misfit, naming
    every difference that matters and what to do about it.
    """
    if faults := [fact for fact in facts if fact.verdict not in ("yes", *have)]:
        hints = dict.fromkeys(fact.hint for fact in faults)
        misfit = Misfit([fact.difference for fact in faults], hint="; ".join(hints))
        misfit.facts = tuple(facts)
        raise misfit
    return [fact.difference for fact in facts if fact.difference]


def check_paths(stages: Sequence[Stage], models: Mapping[str, Blueprint], *, adapted: bool = False) -> None:
    """Raise UserError for paths through modules that don't fit one another, and for further teachers unlike the student.

    `models`: by name, `before` is the student. That the switch fits is `compare`'s to see. `adapted`: it has an adapter.
    """
    student, problems = models["student"], [*_unlike_widths(stages, models, adapted)]
    for name, model in models.items():
        if name in ("student", "teacher"):
            continue
        problems += [f"teachers.{name}: {told}" for told in _other_ids(student, model)[:1] if told]
        facts = (fact for fact in model.facts(student) if fact.name in SEEN and fact.verdict != "yes")
        problems += [f"teachers.{name}: {fact.name}: {fact.teacher}, the student's is {fact.student}" for fact in facts]
    paths = {name: path for stage in stages for name, path in stage.readings.items()}
    for name, path in paths.items():
        sees, projects, reads = (models.get(of, student) for of in (path.vision, path.projector, path.language))
        if sees is not projects and name != "switch":
            facts = (fact for fact in projects.facts(sees, [name]) if fact.verdict != "yes")
            # of the student's tower and the teacher's projector `compare` has seen the rest
            unlike = [f for f in facts if f.name == "feature layer" or not (path.is_switch or f.name == TOKEN_COUNT)]
            values = (f"{fact.name}: {fact.student}, and {fact.teacher}" for fact in unlike)
            told = f"the {path.projector}'s projector can't read the {path.vision}'s features"
            problems += [f"paths.{name}: {told}: {value}" for value in values]
        both = zip(_tokens(projects).items(), _tokens(reads).values(), strict=True) if projects is not reads else ()
        for (what, given), read in both:
            if given != read:
                told = f"the {path.language}'s language model reads a {what} of {read}"
                problems.append(f"paths.{name}: {told}, the {path.projector}'s projector gives {given}")
    if problems:
        raise UserError(problems, "take models of one build, or other modules for the path")


def _unlike_widths(stages: Iterable[Stage], models: Mapping[str, Blueprint], adapted: bool) -> Iterator[str]:
    """Yield the outputs of the student that a stage compares with those of teachers of several widths: it trains one map for all."""
    for stage in stages:
        read = {
            (stage.readings[path], kind) for term in stage.objective for path, kind in term.reads if kind in ADAPTED
        }
        for kind, sources in grouped((kind, path.source(kind, adapted=adapted)) for path, kind in read).items():
            teachers = sorted({*sources}.difference(LEARNING))
            widths = {name: models[name].widths[kind] for name in teachers if len(teachers) > 1}
            if "student" in sources and len({*widths.values()}) > 1:
                told = " and ".join(f"{width} of {name}" for name, width in widths.items())
                yield f"stages.{stage.name}: the student's {kind} can't be mapped to more than one width, got {told}"


def _tokens(model: Blueprint) -> dict[str, int]:
    """Return what a model's language model reads of an image."""
    return {"token width": model.widths["tokens"], TOKEN_COUNT: image_tokens_of(model.config)}


def shared_vocabulary(student: Blueprint, teacher: Blueprint | None, terms: Iterable[Term] = ()) -> Vocabulary:
    """Return the vocabulary that two models that fit share: every token of the student's tokenizer.

    Tokens that only the teacher has never occur. With other ids, or a term that compares bytes, each model reads a row as
    its own tokens.
    """
    tokens = len(student.inputs.tokenizer)
    if teacher is None:
        return Vocabulary(tokens, student.vocabulary)
    apart = _other_ids(student, teacher)[0] or any(term.alignment == "bytes" for term in terms)
    return Vocabulary(tokens, student.vocabulary, teacher.vocabulary, len(teacher.inputs.tokenizer) if apart else None)


QUESTION = "What?"
TOKEN_COUNT = "image token count"
ADAPTED = ("features", "tokens", "mapped", "attention")  # kinds of the student's output that a trained map may follow
SEEN = ("family", "image size", "image mean, std", "image preparation")  # what all teachers see as the student does


def _compares_places(term: Term) -> bool:
    """Return whether a term compares the student's visual tokens, or positions of them, one by one with another model's."""
    if term.signature.of_images:
        return "student" in term.paths and len(term.paths) > 1
    return term.on in ("image", "all") and "teacher_rows" not in term.signature.positional


def _as_compared(fact: PairFact, terms: Iterable[Term]) -> PairFact:
    """Return the fact for these terms: a resize of the features doesn't help those that compare visual tokens one by one."""
    comparing = [term.name for term in terms if _compares_places(term)]
    if fact.verdict != "adapter" or not comparing:
        return fact
    why = f"{fact.difference}: {', '.join(comparing)} can't compare the two"
    return replace(fact, verdict="impossible", difference=why, hint=HINTS["places"])


def _vocabulary_fact(student: Blueprint, teacher: Blueprint, terms: Sequence[Term]) -> PairFact:
    """Compare the tokens of the student's ids with those of the teacher, which may have more.

    Other ids need terms that compare student and teacher by bytes; and where one does, all have to. That is, of those
    terms that compare what depends on tokens of the text: anything but features and visual tokens.
    """
    told, *others = _other_ids(student, teacher)
    ours, theirs = (f"{len(m.inputs.tokenizer):,} tokens{of}" for m, of in zip((student, teacher), others, strict=True))
    across = [term for term in terms if {"student"} < term.paths and term.kinds - {"features", "tokens"}]
    by_bytes = [term.name for term in across if term.alignment == "bytes"]
    if by_bytes and not told:
        told = f"{', '.join(by_bytes)}: alignment: bytes, so that each model reads its own tokens"
    told = told and f"teacher: vocabulary: {told}"
    names: dict[bool, list[str]] = {True: [], False: []}  # by whether bytes help
    for term in across if told else ():
        if term.alignment == "positions":
            names[not term.signature.of_images].append(term.name)
    ways = ("add `alignment: bytes` to", names[True]), ("leave out", names[False])
    if not (hint := " and ".join(f"{way} {', '.join(of)}" for way, of in ways if of)):
        return PairFact("vocabulary", ours, theirs, difference=told)
    return PairFact("vocabulary", ours, theirs, "bytes", told, f"{hint}; or {HINTS['words']}")


def _other_ids(student: Blueprint, teacher: Blueprint) -> tuple[str, str, str]:
    """Return what says that the first of the student's ids is another token of the teacher, or none, and what either has there.

    Empty texts where the teacher has all of them.
    """
    tokenizers = student.inputs.tokenizer, teacher.inputs.tokenizer
    ours, theirs = (tokenizer.convert_ids_to_tokens(range(len(tokenizer))) for tokenizer in tokenizers)
    if differing := [i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b]:
        i, count = differing[0], len(differing)
        told = f"id {i} is {theirs[i]!r}, the student's is {ours[i]!r} ({count} ids differ)"
        return told, f", id {i} is {ours[i]!r}", f", id {i} is {theirs[i]!r}"
    if missing := ours[len(theirs) :]:
        counts = f"{len(theirs)} tokens, the student's has {len(ours)}"
        return f"{counts}, {missing[0]!r} the first that the teacher lacks", "", ""
    return "", "", ""


def _template_problems(inputs: InputProcessor) -> Iterator[str]:
    """Yield why a model's own chat template can't write a question about an image."""
    if not inputs.chat_template:
        yield "no chat template, in its processor or its tokenizer, so a question can't be written"
        return
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    try:
        text = inputs.apply_chat_template([{"role": "user", "content": content}])
    except (TemplateError, TypeError):  # a text model's template adds text to a list
        text = ""
    if text.count(inputs.image_text) != 1 or "'type'" in text:
        yield f"the chat template writes no {inputs.image_text} for an image: it is a text model's"
    elif QUESTION not in text:
        yield "the chat template leaves questions out: it only writes captions, as after a first stage"


def _tokenizer_problems(model: Blueprint) -> Iterator[str]:
    tokenizer = model.inputs.tokenizer
    if not tokenizer.is_fast:  # only a fast one says which characters a token stands for
        yield "the tokenizer has no fast form (a tokenizer.json, which AutoTokenizer would write)"
    if tokenizer.pad_token_id is None:
        yield "the tokenizer has no padding token"
    if len(tokenizer) > model.vocabulary:
        yield f"the tokenizer has {len(tokenizer)} tokens, the language model only {model.vocabulary}"
