"""The chunk-level document's commands: `python -m chunkrl.scripts.NAME` is a command of `chunkrl`.

In its command lines `model` becomes `chunkrl`; docs/documents.md has the rest of its names.
"""
