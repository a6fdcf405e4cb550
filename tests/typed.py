"""What checks the shapes and types of signatures as tests run (see conftest)."""

from beartype import BeartypeConf, beartype

# An int is a float here, as everywhere in Python's typing (PEP 484).
typechecked = beartype(conf=BeartypeConf(is_pep484_tower=True))
