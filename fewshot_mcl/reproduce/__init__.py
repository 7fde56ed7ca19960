"""`fewshot-mcl reproduce`: the paper's tables, cell by cell. Importing this package imports no torch."""
