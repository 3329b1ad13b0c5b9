"""The command `zoo-builder bench`: its options and its table."""

from __future__ import annotations

from typing import Any

DESCRIPTION = """Trains the same models in several ways, one way after another in each of some rounds, and says how
long an update of one model takes. `native` and `stacked` are what `build` does; `loop` is a module of torch.nn and a
torch.optim.AdamW for each model (or, where torch.nn has no such module, the cell in a Python loop); `vmap` is
torch.func over that cell. Every model has data of its own, and answers at every step. `x loop` is how many times as
fast as the loop; `of peak` is the part of the multiplications and additions that the cores could have done, of matrices
alone, and `with el.` counts operations element by element, the loss and the optimiser, too; `memory`
is what updates need above params, gradients, moments and inputs. Of several values of --family, --hidden, --models or
--steps every combination is measured. Other work on the machine spoils the figures: what the load was stands in the
output."""
EPILOG = """Examples: zoo-builder bench --family LSTM CPRNN --fields rank=16 --hidden 16 32 64 --jax.
How it grows: zoo-builder bench --methods native --models 1 16 64 256 1024 4096.
Example: zoo-builder bench --json > bench.json"""


def add_options(parser: Any) -> None:
    """Give a parser the options of the command."""
    add = parser.add_argument
    add("--family", nargs="+", type=str, default=["LSTM"], help="names, as in `zoo-builder list families`")
    add("--fields", nargs="+", type=str, default=[], metavar="NAME=VALUE", help="of the families' config, as rank=16")
    add("--hidden", nargs="+", type=int, default=[32], help="hidden units")
    add("--models", nargs="+", type=int, default=[64], help="models that are trained together")
    add("--batch", type=int, default=32, help="sequences of each model")
    add("--steps", nargs="+", type=int, default=[50], help="length of the sequences")
    add("--input_size", type=int, default=8, help="inputs of a model")
    add("--output_size", type=int, default=8, help="outputs of a model: classes")
    add("--threads", type=int, default=1, help="threads of each method")
    add("--clock", choices=["cpu", "wall"], help="the time that counts (CPU time with one thread, else wall time)")
    add("--methods", nargs="+", type=str, help="instead of native, stacked, loop and vmap")
    add("--jax", action="store_true", help="also jit(vmap(scan)) and jit(lax.map(scan)); needs `pip install jax`")
    add("--repeats", type=int, default=7, help="rounds, of which medians are taken")
    add("--json", action="store_true", help="print one JSON document")


def measured(options: Any) -> tuple[dict[str, Any], str]:
    """Result of the command, as one document and as text."""
    from zoo_builder.bench.case import cases, parse_fields
    from zoo_builder.bench.run import JAX, TORCH, bench, text

    made = cases(
        options.family,
        options.hidden,
        options.models,
        options.steps,
        batch=options.batch,
        sizes=(options.input_size, options.output_size),
        fields=parse_fields(options.fields),
    )
    methods = list(dict.fromkeys([*(options.methods or TORCH), *(JAX if options.jax else ())]))
    found = bench(made, methods, threads=options.threads, repeats=options.repeats, clock=options.clock)
    return found, text(found)
