# `make demo` and `make test` set up what they need. PYTHON chooses the interpreter of the environment.
PYTHON ?= python3
VENV   := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# Two torch processes that each start a thread per core run three times slower than two single-threaded ones.
export OMP_NUM_THREADS ?= 1
export PYTHONHASHSEED ?= 0
# Large tensors in huge pages: a quarter less time where weights are 50 MB a batch.
export THP_MEM_ALLOC_ENABLE ?= 1

.PHONY: setup demo test nbtest unit lab app sync execute docs clean

setup: $(VENV)/.ready

$(VENV)/.ready: settings.ini setup.py
	@echo "Setting up $(VENV) (about three minutes, most of it torch)"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade "setuptools>=68" wheel
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable ".[dev]"
	@touch $@

demo: setup         ## the main job on the embedded data set
	hyperclip_nb demo

test: nbtest unit   ## every notebook and every test

nbtest: setup       ## features and trained parts that the notebooks share are made first, once
	printf 'hnet\nhvae\n' | xargs -P 2 -I{} python -c "from hyperclip_nb.evaluation.experiment import scenes_experiment as open_; x = open_(); x.hyperldm('{}', 0), x.hyperclip('{}', 0), x.conditional(0, condition='clip' if '{}' == 'hvae' else None)"
	nbdev_test --n_workers 2 --timing

unit: setup
	pytest -q tests

lab: setup          ## JupyterLab on the notebooks
	jupyter lab --ServerApp.root_dir=nbs

app: setup          ## the explorer as a page in the browser
	hyperclip_nb app

sync: setup         ## clean the notebooks, export the library, rewrite README.md
	nbdev_clean && nbdev_export && python .ci/readme.py

execute: setup      ## run notebooks in place, outputs saved: make execute NB="nbs/5_diffusion/01_schedule.ipynb"
	python .ci/execute.py $(or $(NB),$(sort $(wildcard nbs/*.ipynb nbs/*/*.ipynb nbs/*/*/*.ipynb))) && nbdev_clean

docs: $(VENV)/.docs  ## documentation site in _docs/html, built offline, links checked
	python docs/build.py

$(VENV)/.docs: $(VENV)/.ready
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable ".[docs]"
	@touch $@

clean:
	rm -rf build dist *.egg-info _proc _docs .pytest_cache
