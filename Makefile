.DEFAULT_GOAL := help
.PHONY: help install check format test docs site ci

help: ## show this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

install: ## install vlp with what its tests need
	pip install -e ".[dev]"

check: ## linters, types and the quick tests
	ruff check .
	ruff format --check .
	mypy
	pytest -m "not slow"

format: ## format the code, mend what ruff can mend
	ruff check --fix .
	ruff format .

test: ## every test
	pytest

docs: ## write docs/recipes.md anew from the options in the code
	python docs/make_recipe_reference.py

site: ## the documentation as a site in build/site
	python -m sphinx -W --keep-going -c docs . build/site

ci: ## what continuous integration runs, in a fresh virtual environment
	.ci/run
