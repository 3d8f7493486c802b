# make quickstart    a first distillation, from nothing to a table (installs on the first call)
# make reproduce     the paper's tables in the embedded world, and rows at equal compute next to them, five seeds; our own recipe,
#                    ten seeds; then the report in reports/playground: about eight hours on two cores (estimated); once stopped,
#                    the same command goes on
#   UNLIKE=1         also students with another tokenizer or encoder, whose parts it trains first: two hours more
#   QUICK=1          one seed and the key rows of four tables, at most 20 minutes; it says what it leaves out
#   WORLD=paper      the paper's own models and data, on GPUs: docs/recipes.md has what is needed, and the hours
#   TABLES="loss knee" ROWS=dbild,bild SEEDS=3 JOBS=4     some tables or rows, other seeds, more at the same time
# make bench         what distillation costs on this machine, as ratios: a table, and reports/bench.json
#                    (docs/performance.md)
#   QUICK=1          small sizes, few repetitions: to see that it works
#   LEVELS="loss step"    some of loss, step, data, startup, evaluation, shared; matrix only when it is named: it trains and
#                    scores an ablation's rows twice
#   LEVELS=peers     steps of TRL, ms-swift and plain loops next to ours; installs them into .venv-peers
#   LEVELS=budgets   adapters of low rank, and teachers in 8 and 4 bits; needs peft and bitsandbytes
#   LEVELS=gpu       what only a GPU can say, in at most eight minutes, into reports/bench_gpu.json
# make setup         install into .venv, with the tested versions
# make test          all tests, on the same drawn examples each time;  make test-fast  leaves out the slow ones
# make test-oldest   all tests with the lowest versions that pyproject.toml allows, in .venv-oldest
# make test-newest   all tests with the highest, in .venv-newest
# make lint          style, import rules and types
# make docs          the documentation as a site: open site/index.html; a broken link is an error
# make clean         remove .venv, .venv-oldest, .venv-newest, .venv-peers and what tests leave behind (runs/ stays)
#
# Another Python:                       make setup PYTHON=python3.12
# A torch build for your GPU:           make setup TORCH_INDEX=<the index address PyTorch's install page gives>
# Tests in so many processes:           make test WORKERS=8

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
WORKERS ?= 2
TORCH_INDEX ?=
WORLD ?= playground
QUICK ?=
JOBS ?=
CHANGES ?=
LEVELS ?=
BENCH ?= reports/bench$(if $(filter gpu,$(LEVELS)),_gpu).json

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS)
JINJA := @huggingface/jinja@0.5.11
INSTALLED := $(VENV)/.installed
INSTALLED_TEST := $(VENV)/.installed-test
INSTALLED_DOCS := $(VENV)/.installed-docs

.DEFAULT_GOAL := help
.PHONY: help quickstart reproduce bench setup test test-fast test-oldest test-newest lint docs clean

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

quickstart: $(INSTALLED)
	$(BIN)/switchkd distill recipes/quickstart.yaml --jobs 2

ifeq ($(WORLD),paper)
ifdef QUICK
$(error QUICK=1 is for the embedded world: name TABLES and ROWS)
endif
TABLES ?= table1-0.5b table1-1.5b align-kd components loss training-scheme knee visual-encoder teacher-size weights methods/losses
RUNS ?= runs
else
ifndef TABLES
TABLES := components loss training-scheme table1-0.5b \
	$(if $(QUICK),,table1-1.5b teacher-size knee visual-encoder weights methods/losses equal-compute mechanisms)
# What our own recipe claims hangs on ten seeds that no choice was made by.
OURS := $(if $(QUICK),,ours)
OUR_SEEDS := --seed 11 --seeds $(or $(SEEDS),10)
LEFT_OUT := align-kd: its models have the stand-ins of table1-1.5b here, it would say nothing new$(if $(UNLIKE),,; \
	unlike-encoder, unlike-tokenizer: their parts are trained first (UNLIKE=1))
# These have parts of their own, no stand-ins.
ifdef UNLIKE
PAIRS := unlike-encoder unlike-tokenizer
PARTS := runs/tower/narrow/seed0/model runs/language_bpe/small/seed0/model
endif
endif
ifdef QUICK
ifndef ROWS
ROWS := switch-kd,align,vsd,sft-frozen,sft,sft-compute,dbild,forward-kl,pt-dft,pt-sft,pt-sft-frozen
LEFT_OUT_BY_QUICK := four of five seeds, so that no gain can be told from chance; table1-1.5b, teacher-size, knee, \
	visual-encoder, weights, methods/losses, equal-compute, mechanisms, ours; of loss all but DBiLD, forward KL and SFT; the rows align-frozen, dpt-dft, dpt-sft and pt-sft-compute
endif
endif
IN_WORLD := --world $(WORLD)
RUNS ?= runs/reproduce
endif
SEEDS ?= $(if $(QUICK),1,5)
REPORT ?= reports/$(WORLD)
HOW = $(strip $(CHANGES) --out $(RUNS) $(if $(ROWS),--rows $(ROWS)) $(if $(JOBS),--jobs $(JOBS)))

# A row that fails takes neither the others nor the report with it: the exit code tells of it at the end.
# In the paper's world align-kd needs a teacher that a row of its own trains first, where its recipe looks for it.
reproduce: $(INSTALLED) $(PARTS)
	@echo "tables: $(strip $(TABLES)); seeds: $(SEEDS)"
	@$(if $(LEFT_OUT),echo "left out: $(LEFT_OUT)")
	@$(if $(LEFT_OUT_BY_QUICK),echo "left out by QUICK=1: $(LEFT_OUT_BY_QUICK)")
	@tables="$(strip $(TABLES))"; code=0; \
	$(if $(IN_WORLD),,$(if $(filter align-kd,$(TABLES)),$(BIN)/switchkd ablate align-kd --rows teacher --out $(RUNS) || \
		{ code=$$?; [ $$code -ne 130 ] || exit 130; tables="$(filter-out align-kd,$(TABLES))"; };)) \
	$(BIN)/switchkd ablate $$tables $(IN_WORLD) $(HOW) --seeds $(SEEDS) || code=$$?; [ $$code -ne 130 ] || exit 130; \
	$(if $(OURS),$(BIN)/switchkd ablate $(OURS) $(HOW) $(OUR_SEEDS) || code=$$?; [ $$code -ne 130 ] || exit 130;) \
	$(if $(PAIRS),$(BIN)/switchkd ablate $(PAIRS) $(HOW) --seeds $(SEEDS) || code=$$?; [ $$code -ne 130 ] || exit 130;) \
	$(BIN)/switchkd compare $$tables $(OURS) $(IN_WORLD) --out $(RUNS) --report $(REPORT) || { was=$$?; [ $$code -ne 0 ] || code=$$was; }; \
	$(if $(PAIRS),$(BIN)/switchkd compare $(PAIRS) --out $(RUNS) --report $(REPORT)-unlike || code=$$?;) \
	[ $$code -eq 0 ] || echo "not everything was done, see above: the same command goes on from here" >&2; \
	exit $$code

runs/tower/%/seed0/model: | $(INSTALLED)
	$(BIN)/switchkd pretrain recipes/playground/tower.yaml --row $*

runs/language_bpe/small/seed0/model: | runs/tower/tower/seed0/model
	$(BIN)/python -m scripts.playground_rows recipes/playground/reader_bpe.yaml
	$(BIN)/python -m scripts.playground_rows recipes/playground/language_bpe.yaml
	$(BIN)/switchkd pretrain recipes/playground/reader_bpe.yaml
	$(BIN)/switchkd pretrain recipes/playground/language_bpe.yaml

bench: $(INSTALLED)
	$(BIN)/python -m scripts.bench $(LEVELS) $(if $(QUICK),--quick) --out $(BENCH)

setup: $(INSTALLED)

test: $(INSTALLED_TEST)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --hypothesis-profile=ci

test-fast: $(INSTALLED_TEST)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --hypothesis-profile=ci -m "not slow"

# What pyproject.toml declares, at its edges. Each lower bound becomes a pin, so a bound that can't be installed fails.
test-oldest: .venv-oldest/lowest.txt
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=$<

.venv-oldest/lowest.txt: pyproject.toml
	@mkdir -p $(@D)
	sed -nE 's/.*"([a-z0-9-]+)>=([0-9.]+)[^"]*".*/\1==\2/p' $< > $@

test-newest:
	rm -rf .venv-newest
	$(MAKE) test VENV=.venv-newest CONSTRAINTS=/dev/null

lint: $(INSTALLED_TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

# mkdocs-material would name its successor in every build.
docs: $(INSTALLED_DOCS)
	$(BIN)/python -m scripts.recipe_fields
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest .venv-peers build dist site .*_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# lmms-eval goes in without its own requirements: among them is torchvision, and one that was built for another torch
# makes transformers' LLaVA classes fail to import. What the ten benchmarks need of them is in pyproject.toml.
$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is not Python 3.11 or newer; name one: make setup PYTHON=python3.12" >&2; exit 3; }
	@echo "installing into $(VENV), one to two minutes ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(if $(TORCH_INDEX),$(INSTALL) torch --index-url $(TORCH_INDEX))
	@$(INSTALL) -e .
	@$(INSTALL) --no-deps lmms-eval
	@$(BIN)/python -c 'from transformers import LlavaForConditionalGeneration; import lmms_eval.evaluator'
	@touch $@

$(INSTALLED_TEST): $(INSTALLED)
	@$(INSTALL) --no-warn-conflicts -e ".[test]"  # lmms-eval lacks requirements on purpose
	@npm install --silent --no-audit --no-fund --prefix $(VENV) $(JINJA) 2>/dev/null || \
		echo "without npm or the network: the test of $(JINJA) is skipped"
	@touch $@

$(INSTALLED_DOCS): $(INSTALLED)
	@$(INSTALL) --no-warn-conflicts -e ".[docs]"
	@touch $@
