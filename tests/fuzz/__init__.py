"""Hostile input of every kind, made from a seed, and what becomes of it.

`frame.py` runs cases and judges their ends; each kind of input is a module beside it:

- `LARGE: int`: cases of a large run.
- `make(rng, folder) -> Case`: writes one input into an empty folder. All that it draws comes from
  `rng`, so that a case is a function of the seed and its number.
- `use(path) -> None`: does with it what a user does, in this process, and asserts that what comes
  out can be trusted (finite, of the right length).
- `warm() -> None`: imports and compiles what `use` needs, so that a case's time is its own.

A new kind is one more line in `frame.KINDS`. The suite runs the first cases of each, in its own
process; `python -m benchmarks.reliability` runs all, in processes with limits, and prints a table.
"""
