# make demo: train and evaluate on synthetic sounds. make test: lint and tests. Both first install into .venv if needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := results/demo

.PHONY: demo test lint clean

# With a CPU-only torch, importing torchaudio fails on its CUDA extension; without that file it works.
$(VENV)/.ready: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' requirements.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -c "import torch, importlib.util as u, pathlib as p; \
	  lib = p.Path(u.find_spec('torchaudio').origin).parent / 'lib'; \
	  [f.unlink() for f in lib.glob('_torchaudio*.so') if torch.version.cuda is None]"
	touch $@

demo: $(VENV)/.ready
	$(BIN)/python supclr_train.py hparams/demo/supclr_train.yaml
	$(BIN)/python linclf_train.py hparams/demo/linclf_train.yaml --linclf_train_type=seen --experiment_name=lep
	$(BIN)/python linclf_train.py hparams/demo/linclf_train.yaml --linclf_train_type=subset --replay_num_keep=16 \
	  --experiment_name=slep
	$(BIN)/python linclf_train.py hparams/demo/linclf_train.yaml --linclf_train_type=full --experiment_name=full
	@$(BIN)/python -m utils.report --summary $(DEMO)/linclf/lep+seed_2022 $(DEMO)/linclf/slep+seed_2022 \
	  $(DEMO)/linclf/full+seed_2022
	@$(BIN)/python -m utils.report $(DEMO)/linclf/lep+seed_2022 $(DEMO)/linclf/slep+seed_2022 \
	  $(DEMO)/linclf/full+seed_2022 --output=$(DEMO)/report > /dev/null
	@echo "To look at the results and hear the clips, open $(DEMO)/report/report.html in a browser."
	@echo "To train on your own sounds, one folder per class or a clips.csv (docs/data_sets.md, \"Own sounds\"):"
	@echo "  $(BIN)/python supclr_train.py hparams/folder/supclr_train.yaml --data_folder=YOUR_FOLDER --experiment_name=mine"
	@echo "  $(BIN)/python linclf_train.py hparams/folder/linclf_train.yaml --data_folder=YOUR_FOLDER \\"
	@echo "    --ssl_checkpoints_dir=results/mine+seed_2022/save --experiment_name=mine-lep"

test: $(VENV)/.ready
	$(BIN)/python -m ruff check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

lint: $(VENV)/.ready
	$(BIN)/python -m ruff check .

clean:
	rm -rf $(DEMO)
