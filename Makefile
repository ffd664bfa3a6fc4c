# `make demo` and `make test` set up what they need. PYTHON chooses the interpreter of the environment.
PYTHON ?= python3
VENV   := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# Two torch processes that each start a thread per core run three times slower than two single-threaded ones.
export OMP_NUM_THREADS ?= 1
export PYTHONHASHSEED ?= 0
# Large tensors in huge pages: a quarter less time where weights are 50 MB a batch.
export THP_MEM_ALLOC_ENABLE ?= 1

.PHONY: setup demo test nbtest unit drill lab app sync check hooks execute docs dist clean

setup: $(VENV)/.ready

$(VENV)/.ready: settings.ini setup.py
	@echo "Setting up $(VENV) (one to three minutes, most of it torch)"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade "setuptools>=68" wheel
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable ".[dev]"
	@touch $@

demo: setup         ## the main job on the embedded data set
	hyperclip_nb demo

test: nbtest unit   ## every notebook and every test

nbtest: setup       ## every notebook; parts that they share are trained first, once
	python .ci/nbtest.py

unit: setup
	pytest -q tests

drill: setup        ## every fault on purpose, far more often than the tests do it; what was tried: docs/failures.md
	HYPERCLIP_DRILL=long pytest -q tests/drill

# No launcher, and no question about news: .ci/lab/overrides.json. Nothing is unsaved that was only opened:
# .ci/lab/lab_contents.py. LAB adds options.
lab: export PYTHONPATH := $(CURDIR)/.ci/lab$(if $(PYTHONPATH),:$(PYTHONPATH))
lab: setup          ## JupyterLab on the index
	jupyter lab --ServerApp.contents_manager_class=lab_contents.Contents --ServerApp.root_dir=nbs --LabApp.default_url=/lab/tree/index.ipynb --LabApp.app_settings_dir=$(CURDIR)/.ci/lab $(LAB)

app: setup          ## the explorer as a page in the browser
	hyperclip_nb app

sync: setup         ## format and clean the notebooks, export the library, rewrite README.md
	ruff format --quiet . hyperclip_nb/__init__.py hyperclip_nb/__main__.py
	nbdev_clean && nbdev_export && python .ci/readme.py

check: setup        ## style, types, order of imports, outputs: all that needs no notebook to run
	.ci/check

hooks: setup        ## git's: checks before a commit, and merges of notebooks by cells
	git config --local include.path ../.gitconfig
	pre-commit install

execute: setup      ## run notebooks in place, outputs saved: make execute NB="nbs/5_diffusion/01_schedule.ipynb"
	python .ci/execute.py $(or $(NB),$(sort $(wildcard nbs/*.ipynb nbs/*/*.ipynb nbs/*/*/*.ipynb))) && nbdev_clean

docs: $(VENV)/.docs  ## documentation site in _docs/html, built offline, links checked
	python docs/build.py

$(VENV)/.docs: $(VENV)/.ready
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable ".[docs]"
	@touch $@

dist: setup         ## source distribution and wheel in dist/
	rm -rf build dist
	python -c "from setuptools import build_meta as b; b.build_sdist('dist'); b.build_wheel('dist')"

clean:
	rm -rf build dist *.egg-info _proc _docs .pytest_cache .mypy_cache .ruff_cache
