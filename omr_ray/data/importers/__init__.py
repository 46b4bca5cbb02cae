"""One file a source; `rows.py` finds them by the `kind` of a source's config."""
