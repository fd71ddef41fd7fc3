from tools import pictures


def test_stamps_with_a_caption_become_rows(tmp_path):
    stamps = tmp_path / "usr/share/tuxpaint/stamps"
    for name, text in {
        "animals/birds/cartoon/crow.png": "A crow.\naf.utf8='n Kraai.\n",
        "animals/birds/drawn.svg": "A bird.\n",
        "plants/tree.png": "A tree.\n",
        "plants/both.png": "A bush.\n",
        "plants/empty.png": "\n",
        "plants/silent.png": None,
    }.items():
        path = stamps / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        if text is not None:
            path.with_suffix(".txt").write_text(text)
    (stamps / "plants/both.svg").touch()
    found, left_out = pictures.rows(tmp_path)
    place = "usr/share/tuxpaint/stamps"
    assert [tuple(row.values())[:3] for row in found] == [
        (f"{place}/animals/birds/cartoon/crow.png", "A crow.", "birds"),
        (f"{place}/plants/both.png", "A bush.", "plants"),
        (f"{place}/plants/tree.png", "A tree.", "plants"),
    ]
    assert left_out == {"SVG": 1, "without a caption": 2}
