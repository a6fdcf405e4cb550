"""Problems in words: chains of "Ana has 3 more coins than Ben", for models that read English.

In: seeds. Out: problems and traces with labels (`task`), a reading of any response (`parse`), the
task with its sets (`questions`).
"""
