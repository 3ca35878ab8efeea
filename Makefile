# The single door. Every target prints the command that it runs.
#
# What a run is:  SCENARIO=1|2|3|4|one-client|five-clients|<file.yaml>  METHOD=lada|standalone|…
#                 DATASET=lab-math|lab-cot|mathinstruct|cot-collection|aqua-rat  DATA=<file>
#                 TIER=lab|rehearsal|paper  SIZE=tiny|quick|paper  SHOTS=0|1  SEED=0  SET="a.b=c d=e"
#                 LAUNCHER=inprocess|local
#                 AMEND=1 (go on although code or run.yaml changed)  FRESH=1 (set the old run aside)  RUNS=<folder>
#                 REUSE=0 (do not take local training from earlier runs with the same inputs)
#                 RESULTS=<folder> (where tables and figures are, results/)

SCENARIO ?= 1
METHOD ?= lada
DATASET ?= $(if $(filter paper rehearsal,$(TIER)),mathinstruct,lab-math)
SIZE ?= $(if $(filter paper,$(TIER)),paper,$(if $(filter rehearsal,$(TIER)),tiny,quick))
LAUNCHER ?= inprocess
RUNS ?= runs
RESULTS ?= results
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The cluster of the last submit, so that status, watch and the like need not be told.
CLUSTER ?= $(shell cat $(RUNS)/.cluster 2>/dev/null)
# The development cluster's user cannot see this checkout: its commands run in a copy.
ON := $(if $(filter devcluster devcluster-%,$(CLUSTER)),$(if $(and $(RUN),$(wildcard $(RUN)/run.yaml)),,slurm/devcluster/as-user))
HOST_VENV = $(if $(ON),,$(VENV)/.host)
JOBS = $(ON) $(BIN)/python -m jobs
WHICH = --runs $(RUNS) $(if $(RUN),--run $(RUN))
# With JSON=1 nothing but the object stands on stdout, not even the command.
AS_JSON = $(if $(JSON),--json)
ifneq ($(JSON),)
.SILENT:
endif

# Huge pages change no number and make large buffers cheaper; only `make stage` fetches from a model hub.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
# Paper tier: MODELS=<folder with one sub-folder per model>, instead of the cluster file's `models`.
ifneq ($(MODELS),)
export LADA_MODELS := $(abspath $(MODELS))
endif

RUN_OPTIONS = --scenario $(SCENARIO) --method $(METHOD) --dataset $(DATASET) --size $(SIZE) --runs $(RUNS) \
  $(if $(DATA),--data $(DATA)) $(if $(SHOTS),--shots $(SHOTS)) $(if $(SEED),--seed $(SEED)) \
  $(if $(TIER),--tier $(TIER)) $(if $(SET),--set '$(SET)') $(if $(AMEND),--amend) $(if $(FRESH),--fresh)

NO_REUSE = $(if $(filter 0,$(REUSE)),--no-reuse)

.DEFAULT_GOAL := help
.PHONY: help setup run image submit resume cancel drive plan status watch logs cost gc doctor stage rehearsal-models test test-slow test-cluster lint bench lab-models methods show lock clean matrix collect sweep tables figures report explain convergence study study-table cluster-up cluster-down

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'
	@sed -n '3,9s/^# //p' Makefile

setup: $(VENV)/.ready ## make the virtual environment with locked versions (TORCH_INDEX=<url>: see README)

$(VENV)/.ready: containers/requirements.lock containers/requirements-test.lock containers/make-venv.sh
	containers/make-venv.sh $(VENV) $(PYTHON)
	touch $@

# What a login node needs: no torch. With the whole environment there, that one serves.
$(VENV)/.host: containers/requirements-host.lock
	[ -e $(VENV)/.ready ] || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "LaDa needs Python 3.11 or newer; name one with PYTHON=<path>" >&2; exit 2; }
	[ -e $(VENV)/.ready ] || { $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip --disable-pip-version-check install -q -r $<; }
	touch $@

run: $(VENV)/.ready ## run a federation and show its table; again = resume
	@rm -f $(RUNS)/.cluster
ifeq ($(filter inprocess local,$(LAUNCHER)),)
	$(error LAUNCHER is inprocess or local, not $(LAUNCHER))
endif
ifeq ($(LAUNCHER),local)
	$(BIN)/python -m jobs.drive --launcher local $(NO_REUSE) $(RUN_OPTIONS)
else
	$(BIN)/python -m lada run $(NO_REUSE) $(RUN_OPTIONS)
endif

image: $(HOST_VENV) ## build the container image where what it is made of changed (CLUSTER=, TORCH_INDEX=<url>)
ifneq ($(filter devcluster devcluster-%,$(CLUSTER)),)
	slurm/devcluster/make-image
else
	$(BIN)/python -m jobs.image $(if $(CLUSTER),--cluster $(CLUSTER))
endif

submit: $(HOST_VENV) ## make or resume a run on a cluster (CLUSTER=<name of configs/clusters/*.yaml>)
	@mkdir -p $(RUNS) && echo "$(CLUSTER)" > $(RUNS)/.cluster
	$(JOBS) submit $(NO_REUSE) $(RUN_OPTIONS) $(if $(CLUSTER),--cluster $(CLUSTER)) $(if $(MODELS),--models $(MODELS))

resume: $(HOST_VENV) ## go on with a run: make resume RUN=runs/<run-id> (default: the newest)
	$(JOBS) resume $(WHICH) $(if $(CLUSTER),--cluster $(CLUSTER)) $(if $(AMEND),--amend)

cancel: $(HOST_VENV) ## cancel a run's driver and stages; resume goes on later
	$(JOBS) cancel $(WHICH)

drive: $(HOST_VENV) ## the driver's loop here, where sbatch is not allowed on compute nodes
	$(JOBS) drive $(WHICH) $(NO_REUSE)

plan: $(HOST_VENV) ## dry run: stages, batch scripts, totals (TIER=paper: memory, hours) for RUN=, SCENARIO=… or MATRIX= (FULL=1, JSON=1)
	$(if $(ASKED_MATRIX),$(JOBS) matrix-plan $(OF_MATRIX),$(JOBS) plan $(if $(RUN),$(WHICH),$(RUN_OPTIONS)) $(if $(CLUSTER),--cluster $(CLUSTER)) $(if $(FULL),--full)) $(AS_JSON)

status: $(HOST_VENV) ## where a run stands (RUN=, default the newest; MATRIX=table2: all its runs; JSON=1)
	$(if $(ASKED_MATRIX),$(JOBS) matrix-status $(OF_MATRIX),$(JOBS) status $(WHICH)) $(AS_JSON)

watch: $(HOST_VENV) ## the status, live, until the run is over
	$(JOBS) watch $(WHICH)

logs: $(HOST_VENV) ## what an attempt wrote: PARTY=client-1|driver ROUND=2 [STEP=learn] [FOLLOW=1]
	$(JOBS) logs $(WHICH) $(if $(PARTY),--party $(PARTY)) $(if $(ROUND),--round $(ROUND)) $(if $(STEP),--step $(STEP)) $(if $(FOLLOW),--follow)

cost: $(HOST_VENV) ## GPU- and core-hours of all attempts: useful, wasted, queued (JSON=1)
	$(JOBS) cost $(WHICH) $(AS_JSON)

gc: $(HOST_VENV) ## what of a run nothing reads again; YES=1 removes it (ONLY="staging logs": a part)
	$(JOBS) gc $(WHICH) $(if $(ONLY),--only "$(ONLY)") $(if $(YES),--yes) $(AS_JSON)

doctor: $(HOST_VENV) ## whether runs can work on this cluster, and what to mend (CLUSTER=, WAIT=seconds)
	$(JOBS) doctor --runs $(RUNS) $(if $(CLUSTER),--cluster $(CLUSTER)) $(if $(WAIT),--wait $(WAIT)) $(AS_JSON)

stage: export HF_HUB_OFFLINE := 0
stage: export HF_HUB_DISABLE_TELEMETRY := 1
# The lab's data are made, not fetched: what is staged is the paper tier's unless DATASET= says otherwise.
stage: STAGED = $(if $(filter file,$(origin DATASET)),mathinstruct,$(DATASET))
stage: $(HOST_VENV) ## fetch models and data, where there is a network (DATASET=, default mathinstruct; CLUSTER=; MODELS=<folder>: use those)
	$(JOBS) stage --scenario $(SCENARIO) --dataset $(STAGED) $(if $(CLUSTER),--cluster $(CLUSTER)) $(if $(MODEL),--model $(MODEL)) $(if $(MODELS),--models $(MODELS)) $(if $(FULL),--full) $(if $(DRY),--dry)

rehearsal-models: $(if $(CLUSTER),$(HOST_VENV),$(VENV)/.ready) ## random stand-ins of a scenario's models, for TIER=rehearsal (MODELS=<folder>, CLUSTER=)
ifeq ($(CLUSTER),)
	$(if $(MODELS),,$(error name a folder: make rehearsal-models MODELS=<folder>))
	$(BIN)/python -m lada rehearsal-models --scenario $(SCENARIO) --models $(MODELS)
else
	$(JOBS) rehearsal-models --scenario $(SCENARIO) --cluster $(CLUSTER) $(if $(MODELS),--models $(MODELS))
endif

show: $(VENV)/.ready ## the table of a run: make show RUN=runs/<run-id>
	$(if $(RUN),,$(error name a run: make show RUN=runs/<run-id>))
	$(BIN)/python -m lada show $(RUN)

methods: $(VENV)/.ready ## what METHOD= takes, with options, defaults and meanings
	$(BIN)/python -m lada methods

test: $(VENV)/.ready ## all tests that need no cluster
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slurm" --ignore tests/slow $(ARGS)

test-slow: $(VENV)/.ready ## tests of minutes each: ten architectures in small, stages of ranks, a killed matrix, whole runs (under an hour)
	$(BIN)/python -m pytest tests/slow -n 2 --dist loadgroup $(ARGS)

# Against a real Slurm and a real Apptainer on this machine; YES=1 agrees to what cluster-up installs. ARGS="-m ci":
# a part of under half an hour. What kills daemons runs alone, the rest two at a time; ARGS may leave none of it (5).
test-cluster: export LADA_NEED_CLUSTER := 1
TEST_SUITE = DEVSUITE=$${DEVCLUSTER:-/opt/lada-devcluster}/test-suite
test-cluster: $(VENV)/.ready ## all tests that need a cluster (root; YES=1; ARGS="-m ci" for a part)
	slurm/devcluster/up.sh
	$(MAKE) image CLUSTER=devcluster
	$(TEST_SUITE) slurm/devcluster/as-user $(BIN)/python -m pytest tests/cluster/test_isolation.py
	$(BIN)/python -m pytest tests/cluster -n 2 --dist load $(ARGS) \
	  --ignore tests/cluster/test_isolation.py --ignore tests/cluster/test_daemons.py
	$(if $(findstring ci,$(ARGS)),,$(BIN)/python -m pytest tests/cluster/test_daemons.py $(ARGS) $(if $(ARGS),|| [ $$? = 5 ]))

lint: $(VENV)/.ready ## style, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.ready ## training step and generation against TRL and transformers, interleaved
	$(BIN)/python -m tests.bench $(ARGS)

lab-models: $(VENV)/.ready ## pre-train the lab models again from scratch (MODELS="qwen3-32b …": only these)
	$(BIN)/python -m lada.lab $(MODELS)

lock: ## lock the versions that the virtual environment has (after a change of containers/*.in)
	$(BIN)/python containers/lock.py

clean: ## remove caches and the virtual environment; runs/ and results/ stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# DEVCLUSTER=<folder> DEVUSER=<user> DEVPORT=<first port>: see slurm/devcluster/settings.sh
cluster-up: ## a Slurm cluster on this machine to try the suite on (YES=1 ACCOUNTING=none); again = start what is missing
	slurm/devcluster/up.sh

cluster-down: ## stop it and all that its jobs left (PURGE=1: and remove its folder)
	slurm/devcluster/down.sh

# MATRIX=<name in configs/matrices> TIER=lab|paper|rehearsal SIZE= RUNS=<folder>; again = what is missing.
# On this machine PARALLEL= runs side by side (lab tier: one a core, four at most, as each has one thread); with
# CLUSTER= each is submitted, at most LIMIT= at a time.
MATRIX ?= lab-study
PARALLEL ?= $(if $(filter-out lab,$(TIER)),1,$(shell n=$$(nproc 2>/dev/null || echo 1); echo $$((n < 4 ? n : 4))))
ASKED_MATRIX := $(if $(filter file,$(origin MATRIX)),,$(MATRIX))
ASKED_CLUSTER := $(if $(filter file,$(origin CLUSTER)),,$(CLUSTER))
ASKED_SIZE := $(if $(filter file,$(origin SIZE)),,$(SIZE))
IN_TIER = $(if $(TIER),--tier $(TIER)) $(if $(ASKED_SIZE),--size $(ASKED_SIZE))
OF_MATRIX = $(MATRIX) --runs $(RUNS) $(IN_TIER) $(if $(ASKED_CLUSTER),--cluster $(ASKED_CLUSTER))
matrix: $(if $(ASKED_CLUSTER),$(HOST_VENV),$(VENV)/.ready) ## run what is missing of a matrix (MATRIX=table2 PARALLEL=2, or CLUSTER=)
ifeq ($(ASKED_CLUSTER),)
	$(if $(LIMIT),$(error LIMIT= is for runs on a cluster: name it with CLUSTER=, or run PARALLEL= at a time here))
	$(BIN)/python -m lada matrix $(MATRIX) --runs $(RUNS) $(IN_TIER) --jobs $(PARALLEL) $(if $(AMEND),--amend)
	$(BIN)/python -m lada collect $(MATRIX) --runs $(RUNS) $(IN_TIER) --results $(RESULTS)
else
	$(JOBS) matrix $(OF_MATRIX) $(if $(AMEND),--amend) $(if $(LIMIT),--limit $(LIMIT)) $(if $(MODELS),--models $(MODELS))
endif

collect: $(VENV)/.ready ## a matrix's finished runs as results/<tier>/<matrix>.csv (MATRIX=table2)
	$(BIN)/python -m lada collect $(MATRIX) --runs $(RUNS) $(IN_TIER) --results $(RESULTS)

# GRID="method.beta=0.05,0.1 method.nll_weight=0,1" SEEDS=0,1,2 and whatever names a run
sweep: $(VENV)/.ready ## one method over all combinations of options' values (METHOD= GRID="a.b=1,2" SEEDS=0,1 PARALLEL=2)
	$(if $(GRID),,$(error name options and values: make sweep GRID="method.beta=0.05,0.1"))
	$(BIN)/python -m lada sweep $(RUN_OPTIONS) --grid '$(GRID)' $(if $(SEEDS),--seeds $(SEEDS)) --jobs $(PARALLEL) --results $(RESULTS)

REPORT = $(BIN)/python -m lada.report
OF_TIER = --tier $(if $(TIER),$(TIER),lab) --results $(RESULTS)
tables: $(VENV)/.ready ## the paper's tables from results/<tier>: CSV, Markdown, LaTeX (TIER=lab)
	$(REPORT) tables $(OF_TIER)

figures: $(VENV)/.ready ## the paper's figures from results/<tier>: PDF, PNG (TIER=lab)
	$(REPORT) figures $(OF_TIER)

report: $(VENV)/.ready ## results/<tier>/report.html: tables, figures, where they are from, what is missing
	$(REPORT) report $(OF_TIER)

explain: $(VENV)/.ready ## where a number is from: CELL="table2/scenario 1/zero-shot/client-1/lada"
	$(if $(CELL),,$(error name a cell: make explain CELL="table2/scenario 1/zero-shot/client-1/lada"))
	$(REPORT) explain $(OF_TIER) --runs $(RUNS) "$(CELL)"

convergence: $(VENV)/.ready ## Section V on toys: the rate with two controls, what selection does to a gradient
	$(BIN)/python -m lada.convergence --out $(RESULTS)/convergence.csv

# The runs behind README's Results section.
STUDY_RUNS ?= $(RUNS)/study
STUDY := lab-tuning lab-study lab-selection lab-threshold
study: $(VENV)/.ready ## the runs behind README's results (hours; again = go on; PARALLEL=2 runs two at a time)
	for matrix in $(STUDY); do \
	  $(BIN)/python -m lada matrix $$matrix --runs $(STUDY_RUNS) --jobs $(PARALLEL) $(if $(AMEND),--amend) || exit 1; done

study-table: $(VENV)/.ready ## collect the study's runs into results/lab and rewrite README's tables
	for matrix in $(STUDY); do $(BIN)/python -m lada collect $$matrix --runs $(STUDY_RUNS) || exit 1; done
	$(BIN)/python -m lada.report.readme
