# wspnb: everything a newcomer needs. `make` alone prints the list.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
ADRENAL ?=
LIHC   ?=
CIRRMRI ?=
LABELS ?=
IMAGENET ?=
ENCODERS ?=
RUN    ?= runs/laptop
LAB    ?=
CORES  ?= $$(python -c 'from wspnb.workers import count_cores; print(count_cores())')
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready
# Scripts of an environment name its place: where the project has moved, it is set up again.
MOVED  := $(shell test -L $(VENV) -o ! -e $(BIN)/snakemake || head -n 3 $(BIN)/snakemake | grep -qF "$$(pwd -P)/" || echo moved)
FLOW   := $(BIN)/snakemake --snakefile workflow/Snakefile --profile workflow/profiles/local --cores $(CORES)
.DEFAULT_GOAL := help
.PHONY: moved help reproduce plan tables lihc cirrmri gpu smoke book test verify docs browser bench lint check lab clean
export PATH := $(CURDIR)/$(BIN):$(PATH)
# A pip.conf that installs for the user would end the set-up.
export PIP_USER := 0
export ADRENAL LIHC CIRRMRI LABELS IMAGENET ENCODERS RUN  # the shell reads paths from here, whatever characters they have

help:  ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

moved: ;

# torch goes first and apart: which build it is, for CPU or GPU, is the index's and the user's choice.
$(STAMP): requirements.lock pyproject.toml $(MOVED)
	$(if $(MOVED),rm -rf $(VENV))
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "Python 3.11, 3.12 or 3.13 is needed, found %d.%d: make PYTHON=/path/to/python3.11 ..." % v)'
	@echo "setting up $(VENV) (once, some minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet "$(TORCH)"
	@$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

reproduce: $(STAMP)  ## the paper's experiment on the synthetic cohort, one seed -> runs/laptop/report.html
	$(FLOW) report

plan: $(STAMP)  ## what `make tables` would run, and how long it takes about
	@echo "first the reference experiment (benchmarks/gpu.py): a card, or days; then"
	$(FLOW) plan --config sweep=workflow/tables.yaml

tables: $(STAMP)  ## every committed table: the reference experiment (a card, or days), then workflow/tables.yaml (ADRENAL=file or a 277 KB download) -> figures/
	$(BIN)/python benchmarks/gpu.py --out runs/reference --size 64 --plans reference,variants,judged,factors --skip tests,step \
	  --minutes 100000 --workers $(CORES) --publish figures
	$(FLOW) report --config sweep=workflow/tables.yaml publish=figures adrenal="$$ADRENAL" imagenet="$$IMAGENET"

lihc: $(STAMP)  ## TCGA-LIHC, public CT (downloaded, or LIHC=folder LABELS=table): the untrained network judged on D2
	$(FLOW) report --config profile=lihc methods=random lihc="$$LIHC" labels="$$LABELS" public_encoders="$$ENCODERS"

cirrmri: $(STAMP)  ## CirrMRI600+, public MRI with stages (about 5.5 GB, or CIRRMRI=folder; T1 takes less): pretrained, judged -> runs/cirrmri
	@test -n "$$CIRRMRI" || echo "CirrMRI600+, CC BY-NC 4.0: the T1 part of about 5.5 GB is downloaded unless it is there (CIRRMRI=folder of a copy); never run on the real archive: docs/real-data.md"
	$(FLOW) report --config profile=cirrmri methods=random,depth_aware,supcon,wsp,finetuned_wsp cirrmri="$$CIRRMRI" public_encoders="$$ENCODERS"

smoke: $(STAMP)  ## every notebook, tiny
	$(FLOW) report --config profile=smoke methods=supervised,random,simclr,byol,supcon,depth_aware,wsp,as_released sigmas=0.3

book: $(STAMP)  ## site from the executed notebooks of RUN=runs/laptop, docs and docstrings -> runs/laptop/book/index.html
	$(BIN)/python docs/book.py "$$RUN" "$$RUN/book"

test: $(STAMP)  ## all tests
	$(BIN)/python -m pytest

verify: $(STAMP)  ## every committed table again from the committed patients' scores, without training; RUN=runs/laptop: that run against itself
	$(BIN)/python -m wspnb.results.committed $(if $(filter command line,$(origin RUN)),--run "$$RUN")

docs: $(STAMP)  ## README and docs: tables and sentences anew from figures/
	$(BIN)/python docs/fill.py

gpu: $(STAMP)  ## with a card: its tests, its speed and the runs of the reference experiment, nine minutes -> runs/gpu/
	$(BIN)/python benchmarks/gpu.py --plans reference,judged,open,variants,kernels,small --size 64

browser: $(STAMP)  ## JupyterLab and the pages of the smoke run in Chromium (after make smoke): screenshots in runs/browser/
	$(BIN)/python -m pytest -v -x -m browser --durations 8 tests/project/test_browser.py

bench: $(STAMP)  ## speed and memory against plain versions, side by side -> benchmarks/results.csv
	$(BIN)/python benchmarks/bench.py

lint: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports
	$(BIN)/nbstripout --verify --keep-id --extra-keys "metadata.papermill cell.metadata.papermill cell.metadata.execution metadata.language_info" notebooks/*.ipynb

check: lint  ## lint, stripped notebooks, unit tests
	$(BIN)/python -m pytest -m "not slow and not slurm and not trust and not browser"

lab: $(STAMP)  ## JupyterLab with working copies of the notebooks (LAB=--port=8890: another port): yours to change, runs/ of the workflow stays
	$(BIN)/python workflow/lab.py $(LAB)

clean:  ## remove .venv and the smoke run (your results in runs/ stay, and with them what tells their state)
	rm -rf runs/smoke $(VENV)
