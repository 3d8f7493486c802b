"""The protocol: how each of the paper's ten benchmarks is run and scored here, one entry per benchmark.

The entries name stock lmms-eval tasks (prompts and metrics unchanged) and say where the paper measured its printed number
differently, so that a table can show the difference next to the score.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

LMMS_EVAL = "0.7.3"
"""The release of lmms-eval whose tasks these entries describe."""

# How an answer becomes a score. No answer is ever sent to a judge model.
RULE = "stock rule"
# Stock lmms-eval sends an answer that it can't read to a judge model over the network, then draws a random option.
READABLE = "stock rule, no judge; an answer it can't read is wrong"
GUESS = "official rule; an answer without an option counts as a random one (fixed seed)"
PERCENT = "% right"
CONSENSUS = "% VQA accuracy"

AnswerKind = Literal["open", "choice", "yes-no"]
ANSWER_KINDS: Mapping[AnswerKind, str] = MappingProxyType(
    {"open": "open questions", "choice": "multiple choice", "yes-no": "yes or no"}
)
"""The kind of answer that a benchmark wants; a student may gain on one kind and lose on another."""

FAULTS: Mapping[str, str] = MappingProxyType(
    {
        "unreadable": "can't be read by the metric",
        "empty": "are empty",
        "at_limit": "were cut at the limit of new tokens",
        "too_long": "go past the positions that the model was made for",
    }
)
"""Why an answer may be wrong although the model knows it; results count these (engine/evaluation/item_scores.py)."""


@dataclass(frozen=True)
class Benchmark:
    """One column of the paper's table, and the stock task that measures it."""

    task: str
    """lmms-eval's name of the task, also used in recipes and results."""
    column: str
    """The head of the paper's column (Table 1)."""
    task_folder: str
    """The task's folder under lmms_eval/tasks, so that only ten of its 190 folders are read."""
    data: str
    """The folder (and configuration) of the data set under lmms-lab-encoder/."""
    split: str
    """The split of the data set that the task reads."""
    paper_split: str
    """The split of the paper's printed number."""
    asks: AnswerKind
    """The kind of answer that its questions want (in MMMU: nearly all of them)."""
    metric: str = "exact_match"
    """The key of the stock metric that is reported."""
    full: float = 1.0
    """The metric's value if every answer is right; the score is 100 x metric / full."""
    per_category: bool = False
    """Whether `full` is per category of the set (MME adds up its categories)."""
    target: str = "answer"
    """The column of the right answer; of a list of answers, the most frequent one is meant."""
    counted: str = ""
    """The only answer that the metric counts, if there is one (F1)."""
    scale: str = PERCENT
    """The meaning of 100, and how the paper's numbers are converted if they are printed on another scale."""
    judge: str = RULE
    """Who or what reads the answers."""
    paper_judge: str = ""
    """Who or what read the paper's answers, if this is known to differ."""
    ocr: bool = False
    """Whether OCR tokens are part of the prompt."""
    paper_ocr: bool = False
    note: str = ""
    """How the paper's convention differs, if it does."""

    def score(self, metric: float, categories: int = 1) -> float:
        """Return the stock metric on the paper's scale, 0..100."""
        return 100.0 * metric / (self.full * (categories if self.per_category else 1))


SERVER = (
    "the paper's numbers come from the MMBench server, and most likely from LLaVA-1.5's prompts: the options right "
    "under the question, where the stock task's say 'There are several options:' first"
)
VAL = "the paper's split has no public answers; this is val"

ROWS = (
    Benchmark(
        task="mme",
        column="MME",
        metric="mme_perception_score",
        task_folder="mme",
        data="MME",
        split="test",
        paper_split="test",
        asks="yes-no",
        full=200.0,
        per_category=True,
        scale="% of the points possible (paper: points / 2000)",
        note="perception points / points possible: the paper's points / 2000 with all ten categories",
    ),
    Benchmark(
        task="mmbench_en_dev",
        column="MMB",
        metric="gpt_eval_score",
        task_folder="mmbench",
        data="MMBench/en",
        split="dev",
        paper_split="dev, English, legacy",
        asks="choice",
        full=100.0,
        judge=READABLE,
        paper_judge="the MMBench server",
        note=SERVER,
    ),
    Benchmark(
        task="mmbench_cn_dev",
        column="MMB-CN",
        metric="gpt_eval_score",
        task_folder="mmbench",
        data="MMBench/cn",
        split="dev",
        paper_split="dev, Chinese, legacy",
        asks="choice",
        full=100.0,
        judge=READABLE,
        paper_judge="the MMBench server",
        note=f"{SERVER}, and ask for the letter in other words",
    ),
    Benchmark(
        task="vqav2_val",
        column="VQAv2",
        task_folder="vqav2",
        data="VQAv2",
        split="validation",
        paper_split="test-dev",
        asks="open",
        target="multiple_choice_answer",
        scale=CONSENSUS,
        note=VAL,
    ),
    Benchmark(
        task="gqa",
        column="GQA",
        task_folder="gqa",
        data="GQA",
        split="testdev",
        paper_split="test-dev, balanced",
        asks="open",
    ),
    Benchmark(
        task="scienceqa_img",
        column="SciQA",
        task_folder="scienceqa",
        data="ScienceQA/ScienceQA-IMG",
        split="test",
        paper_split="test, with image",
        asks="choice",
    ),
    Benchmark(
        task="mmmu_val",
        column="MMMU",
        metric="mmmu_acc",
        task_folder="mmmu",
        data="MMMU",
        split="validation",
        paper_split="val",
        asks="choice",
        judge=GUESS,
    ),
    Benchmark(
        task="textvqa_val",
        column="TextVQA",
        task_folder="textvqa",
        data="textvqa",
        split="validation",
        paper_split="val, v0.5.1",
        asks="open",
        target="answers",
        scale=CONSENSUS,
        paper_ocr=True,
        note="the paper's prompts carry OCR tokens (LLaVA-1.5's file); the stock task's do not",
    ),
    Benchmark(
        task="vizwiz_vqa_val",
        column="VizWiz",
        task_folder="vizwiz_vqa",
        data="VizWiz-VQA",
        split="val",
        paper_split="test",
        asks="open",
        target="answers",
        scale=CONSENSUS,
        note=VAL,
    ),
    Benchmark(
        task="pope",
        column="POPE",
        metric="pope_f1_score",
        task_folder="pope",
        data="POPE",
        split="test",
        paper_split="random, popular, adversarial",
        asks="yes-no",
        counted="yes",
        scale="100 x F1 of yes, pooled (paper: most likely the mean of three F1)",
        note="F1 over the pooled questions; the paper's is most likely the mean of the three F1",
    ),
)

BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType({row.task: row for row in ROWS})
"""The ten, by task name, in the order of the paper's columns."""
