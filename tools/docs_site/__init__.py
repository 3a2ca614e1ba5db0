"""The documentation site: what MkDocs does not do by itself, as hooks (`hooks.py`). `make docs` builds it."""
