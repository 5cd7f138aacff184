"""The papers' experiments as scripts, a folder for each paper; ``README.md`` is the index."""
