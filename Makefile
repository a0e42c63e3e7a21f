# make demo                the main job on a small model made here; the last line is the path of its report
# make test                all checks: style, types, tests
# make test-transformers4  the model tests with the oldest transformers we hold
# make whisper             the main job on Whisper tiny.en and real speech; needs EDGECOMPRESS_MODELS, EDGECOMPRESS_SPEECH
# make clean               remove what the others made, runs excepted
#
# Nothing here needs root. What is installed is keyed on a hash of the constraints and pyproject.toml: while they stay
# the same, pip is not called again.

SHELL := bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
VENV4 := .venv-transformers4
KEY := $(shell cat constraints.txt pyproject.toml | sha256sum | cut -c1-12)
KEY4 := $(shell cat constraints-transformers4.txt pyproject.toml | sha256sum | cut -c1-12)
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
# Two -q leave pip's errors: local indexes make it warn once for every package and directory that is not there.
INSTALL := -m pip install -qq --no-input --disable-pip-version-check

.PHONY: help demo test test-transformers4 whisper clean
help:
	@sed -n '/^# make /s/^# //p' Makefile

demo: $(VENV)/installed-demo-$(KEY)
	@$(VENV)/bin/edgecompress run examples/quickstart.toml

test: $(VENV)/installed-dev-$(KEY)
	@$(VENV)/bin/python -m tests.sshd ensure
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/pytest -q -n auto --dist loadfile

test-transformers4: $(VENV4)/installed-dev-$(KEY4)
	$(VENV4)/bin/pytest -q tests/test_model*.py

# A second device: an sshd of its own on loopback, with its own key and settings folder, gone when the run ends.
whisper: $(VENV)/installed-dev-$(KEY)
	@$(VENV)/bin/python -m tests.sshd ensure
	@bash examples/whisper-barista.sh $(VENV)/bin

clean:
	rm -rf $(VENV) $(VENV4) .tools .mypy_cache .pytest_cache .ruff_cache

# A folder whose Python is gone, too old or without pip is made anew, and a failure leaves none behind.
define make_venv
	@"$(PYTHON)" -c '$(NEW_ENOUGH)' || { echo "error: Python 3.11 or later is needed: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "installing into $(1): some minutes, once" >&2
	@"$(1)/bin/python" -c 'import pip; $(NEW_ENOUGH)' 2>/dev/null || rm -rf $(1)
	@test -x $(1)/bin/python || "$(PYTHON)" -m venv $(1) || { rm -rf $(1); echo "error: '$(PYTHON)' has no venv; on Debian: apt-get install python3-venv" >&2; exit 2; }
	@$(1)/bin/python $(INSTALL) -c $(2) -e '.[$(3)]'
	@rm -f $(1)/installed-* && touch $@
endef

# torch is pinned in the same command as all else: a second command could bring another one.
$(VENV)/installed-demo-$(KEY):
	$(call make_venv,$(VENV),constraints.txt,torch$(,)onnx$(,)report)

$(VENV)/installed-dev-$(KEY):
	$(call make_venv,$(VENV),constraints.txt,torch$(,)onnx$(,)openvino$(,)tflite$(,)report$(,)dev)
	@touch $(VENV)/installed-demo-$(KEY)

$(VENV4)/installed-dev-$(KEY4):
	$(call make_venv,$(VENV4),constraints-transformers4.txt,torch$(,)onnx$(,)report$(,)dev)

, := ,
