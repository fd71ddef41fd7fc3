"""Listening tests in a browser: makes the page, and the table of the answers.

    python -m maa_jax.listen --sounds=ours=out/ours,theirs=out/theirs,reference=recordings \\
        --test=mos_q,mos_f --out=listening
    python -m maa_jax.listen --results=answers --out=listening

The first command writes listening/page, which works as a file and on any static host, and
listening/test.json, which says which sound is whose: do not publish it. A listener's answers are
saved as a file, and posted to --post_url where one is given. The second command reads these files,
screens the listeners and writes listening/results.md, results.csv, ratings.csv and listeners.csv.

Tests:

    mos_q   audio quality and naturalness, 20 to 100
    mos_f   faithfulness to the caption, 20 to 100; with mos_q on one page: mos_q,mos_f
    ab      which of two systems' sounds is better
    mushra  each system beside a reference, 0 to 100, with the reference and a low-passed one hidden

Each listener hears a part of the prompts, chosen so that all are heard equally often: ?listener=17
in the page's address names the part, which is else drawn at random; ?id=NAME is recorded.
"""

from maa_jax import command, options
from maa_jax.listen.request import Listening


def define_flags() -> None:
    """Defines the flags, which other programs also define: call it only from this program."""
    options.define_flags(Listening)


def main() -> None:
    """Runs the program that this module's docstring describes."""
    request = options.from_flags(Listening)
    # Imported after the flags are parsed, so that --help and mistakes in them are answered at once.
    if request.results:
        from maa_jax.listen import results

        print(results.write_results(request))
        return
    from maa_jax.listen import page

    print(f"Page: {page.write_page(request)}")


def run() -> None:
    """Entry point of `python -m maa_jax.listen` and of `maa-listen`."""
    command.run(main, define_flags)


if __name__ == "__main__":
    run()
