# Two commands matter: `make demo` and `make test`. Both set up everything they need. `make ollama` and `make vllm` bring two more servers, which `make test` then asks too.
PYTHON ?= python3.11
PIP_OPTIONS ?=
BIN = .venv/bin
STAMP = .venv/.installed
# notebooks whose kernels need not import PyTorch and Transformers: tests/warm_kernel.py
WARM = $(if $(filter Linux,$(shell uname)),--nbmake-kernel=warm)

export HF_HUB_DISABLE_TELEMETRY = 1
export UNSLOTH_DISABLE_STATISTICS = 1
# the tests start some hundred processes, and compiled modules are read faster
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo demo-real test test-all test-pythons browser ollama vllm check readme figures bench docs constraints

setup: $(STAMP)
	@$(BIN)/toolcall-ft llama-cpp

$(STAMP): settings.ini setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(PIP_OPTIONS) --constraint constraints.txt --editable '.[all]'
	$(BIN)/python -m pip check
	@touch $(STAMP)

demo: setup
	$(BIN)/toolcall-ft run --config examples/config.yaml

# a real pretrained model learns a task written by hand, all the way to two servers
demo-real: setup ollama
	$(BIN)/toolcall-ft model smollm2
	$(BIN)/python benchmarks/home.py

# the lessons run in tests/test_lessons.py, each alone in an empty folder against the wheel, the quickstart in a clean Python 3.12 (tests/test_clean.py); all other notebooks run where they are
PYTEST = $(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder --nbmake --nbmake-timeout=900 $(WARM) tests nbs/lib nbs/deep nbs/glossary.ipynb nbs/index.ipynb

test: setup check
	$(PYTEST) -m "not slow"

# with what is named in tests/slow.txt as well
test-all: setup check
	$(PYTEST)

# the package and the light tests on every Python that is here: 3.11, 3.12, 3.13
test-pythons:
	$(BIN)/python tests/pythons.py

# a Chromium for the tests of the viewer, where there is none yet
browser:
	@for name in chromium chromium-browser google-chrome; do command -v $$name && exit; done; \
	if [ "$$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium fonts-noto-cjk; else sudo apt-get install chromium; fi

# Ollama, for the tests of it: found, or built with Go (1.26 or newer) into your cache folder. Without it these tests are skipped, and say so.
ollama: setup
	$(BIN)/toolcall-ft ollama

# vLLM without a GPU, for the tests of it: 5.5 GB in an environment of its own, since it wants other versions than we do
vllm: .venv-vllm/.installed

.venv-vllm/.installed: constraints-vllm.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install $(PIP_OPTIONS) --no-deps --requirement constraints-vllm.txt
	@touch .venv-vllm/.installed

# the modules are in step with the notebooks, the notebooks are clean, the READMEs are in step with the index
check: $(STAMP)
	rm -rf build/check && mkdir -p build/check
	cp -r settings.ini nbs toolcall_ft build/check
	cd build/check && ../../$(BIN)/nbdev_export && ../../$(BIN)/nbdev_clean
	diff -r -x __pycache__ -x .ipynb_checkpoints toolcall_ft build/check/toolcall_ft
	diff -r -x .ipynb_checkpoints nbs build/check/nbs
	$(BIN)/python benchmarks/write_readme.py --check

readme: $(STAMP)
	$(BIN)/python benchmarks/write_readme.py

# after `make demo`: its figures into the index notebook and both READMEs
figures: $(STAMP)
	cp runs/demo/summary.json benchmarks/demo_summary.json
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace nbs/index.ipynb
	$(BIN)/nbdev_clean --fname nbs/index.ipynb
	$(MAKE) readme

bench: $(STAMP)
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/demo_stages.py
	$(BIN)/python benchmarks/serve.py

# the site: all notebooks and the reference of the library, into _docs
docs: $(STAMP)
	$(BIN)/python docs/make_site.py

# a new tested set of versions: resolve every extra in a fresh environment and write down what came
constraints:
	rm -rf build/resolve && $(PYTHON) -m venv build/resolve
	build/resolve/bin/python -m pip install $(PIP_OPTIONS) '.[all]'
	(sed -n '/^#/p' constraints.txt; build/resolve/bin/python -m pip freeze --exclude toolcall-ft) > build/constraints.txt
	mv build/constraints.txt constraints.txt
