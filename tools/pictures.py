"""A table of captioned pictures from the stamps of Tux Paint, for the dataset `image_folder`.

    apt-get download tuxpaint-stamps-default
    dpkg-deb -x tuxpaint-stamps-default_*.deb packages/tuxpaint-stamps-default
    python -m tools.pictures --package=packages/tuxpaint-stamps-default --out=stamps.csv

Nothing is installed or copied: the table's `file` is a path in the package, the dataset's `folder`.
A stamp is a PNG file with a text file of the same name, whose first line is its English caption;
stamps that are drawn in SVG alone are left out. Its label is its subject, the second folder of its
path. All are under GPL-2.0, as the package's copyright file says.
"""

import collections
import csv
import pathlib

from absl import app, flags

LICENSE = "GPL-2.0-only"
COLUMNS = ("file", "caption", "label", "license")


def rows(package: pathlib.Path) -> tuple[list[dict[str, str]], collections.Counter]:
    """Returns the table's rows, sorted by file, and how many pictures were left out, by reason."""
    found, left_out = [], collections.Counter()
    paths = [*package.rglob("stamps/**/*.png"), *package.rglob("stamps/**/*.svg")]
    for path in sorted(paths):
        if path.suffix == ".svg":
            if not path.with_suffix(".png").exists():
                left_out["SVG"] += 1
            continue
        try:
            lines = path.with_suffix(".txt").read_text("utf-8").splitlines()
        except FileNotFoundError:
            lines = []
        caption = lines[0].strip() if lines else ""
        if not caption:
            left_out["without a caption"] += 1
            continue
        name = path.relative_to(package).as_posix()
        folders = name.partition("/stamps/")[2].split("/")[:-1]
        row = (name, caption, folders[:2][-1], LICENSE)
        found.append(dict(zip(COLUMNS, row, strict=True)))
    return found, left_out


def main(argv: list[str]) -> None:
    """Writes the table and says what it holds."""
    del argv
    package, out = pathlib.Path(flags.FLAGS.package), pathlib.Path(flags.FLAGS.out)
    table, left_out = rows(package)
    if not table:
        raise app.UsageError(f"--package={package}: it holds no stamps; unpack the package there")
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(table)
    labels = {row["label"] for row in table}
    print(f"{len(table)} pictures, {len(labels)} labels, in {out}")
    print("left out: " + (", ".join(f"{n} {why}" for why, n in left_out.items()) or "none"))


def define_flags() -> None:
    """Defines the flags, of which another tool has some too: call it only from this program."""
    flags.DEFINE_string("package", None, "Folder of the unpacked package.", required=True)
    flags.DEFINE_string("out", None, "Table to write, a CSV file.", required=True)


if __name__ == "__main__":
    define_flags()
    app.run(main)
