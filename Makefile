# Needs plain make and a Python >= 3.10. Each target makes the virtual environment it needs and reuses it until
# pyproject.toml or constraints.txt change. Another interpreter: make test PYTHON=python3.12
PYTHON ?= python3
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check -c constraints.txt
SOURCES := $(shell find src -type f -not -name '*.pyc')

.PHONY: demo test lint bench docs clean
.DELETE_ON_ERROR:

demo: .venv-demo/.installed
	.venv-demo/bin/mmrl demo --out demo

test: lint
	.venv-test/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal

lint: .venv-test/.stamp
	.venv-test/bin/ruff check .
	.venv-test/bin/mypy

bench: .venv-test/.stamp
	.venv-test/bin/python -m benchmarks.startup
	.venv-test/bin/python -m benchmarks.train_step --classes 24,100 --batch 4 --backbone ViT-B-16
	.venv-test/bin/python -m benchmarks.inference
	.venv-test/bin/python -m benchmarks.test_pipeline

# The site, in site/: any web server can serve it, such as python3 -m http.server -d site
docs: .venv-test/.stamp
	NO_MKDOCS_2_WARNING=1 .venv-test/bin/python -m mkdocs build --strict

# Dependencies once; the package itself again after every change of its sources (seconds, since --no-deps).
.venv-demo/.installed: .venv-demo/.stamp $(SOURCES)
	.venv-demo/bin/python $(PIP_INSTALL) --no-deps --force-reinstall .
	@touch $@

.venv-demo/.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "mmrl needs Python 3.10 or later: make $(MAKECMDGOALS) PYTHON=...")'
	test -x .venv-demo/bin/python || $(PYTHON) -m venv .venv-demo
	.venv-demo/bin/python $(PIP_INSTALL) .
	@touch $@

.venv-test/.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "mmrl needs Python 3.10 or later: make $(MAKECMDGOALS) PYTHON=...")'
	test -x .venv-test/bin/python || $(PYTHON) -m venv .venv-test
	.venv-test/bin/python $(PIP_INSTALL) -e ".[dev]"
	@touch $@

clean:
	rm -rf .venv-demo .venv-test .pytest_cache .mypy_cache .ruff_cache .hypothesis demo dist site
