"""Writes the test vectors: `python -m tests.vectors`."""

from tests.vectors import FOLDER, files

FOLDER.mkdir(exist_ok=True)
for name, content in files().items():
    (FOLDER / name).write_text(content, encoding="utf-8")
