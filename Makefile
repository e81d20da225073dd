# make demo: the main job on synthetic sounds. make test: the tests. Each makes .venv first where there is none.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := results/demo
SMALL := --encoder=pann_tiny --emb_dim=128

.PHONY: demo test lint clean

# A CPU-only torch can't load torchaudio's CUDA extension; torchaudio does without where the file is absent.
$(VENV)/.ready: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -c "import torch, importlib.util as u, pathlib as p; \
	  lib = p.Path(u.find_spec('torchaudio').origin).parent / 'lib'; \
	  [f.unlink() for f in lib.glob('_torchaudio*.so') if torch.version.cuda is None]"
	touch $@

demo: $(VENV)/.ready
	$(BIN)/python -m utils.demo

test: $(VENV)/.ready
	$(BIN)/python -m ruff check .
	$(BIN)/python -m pytest

lint: $(VENV)/.ready
	$(BIN)/python -m ruff check .

clean:
	rm -rf $(DEMO)
