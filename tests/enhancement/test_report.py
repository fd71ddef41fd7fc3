import numpy as np
import pytest

from maa_jax.audio.io import encode_flac
from maa_jax.enhancement import report
from maa_jax.enhancement.distill import Candidate
from maa_jax.enhancement.shards import Shard, Source, write_record

THRESHOLD = 0.5
FOUND = [
    ("crow", [Candidate("a crow caws", "captioning", 0.9), Candidate("birds", "labels", 0.6)]),
    ("rain", [Candidate("rain", "labels", 0.5), Candidate("applause", "captioning", 0.1)]),
    ("hiss", [Candidate("<hiss>", "captioning", 0.2)]),
    ("silence", []),
]


@pytest.fixture
def summary(tmp_path, monkeypatch):
    shards = [
        Shard(0, Source("field", "/data/field/1.0.0", "train", 160), 0, 3),
        Shard(1, Source("lab", "/data/lab/1.0.0", "train", 160), 0, 1),
    ]
    write_record(tmp_path, shards[0], FOUND[:3])
    write_record(tmp_path, shards[1], FOUND[3:])
    audio = encode_flac(np.zeros(160, np.float32))
    split = [
        {
            "id": id.encode(),
            "license": b"CC0-1.0",
            "labels": [b"a label"],
            "audio": audio,
            "start": 16_000 * i,
        }
        for i, (id, _) in enumerate(FOUND)
    ]
    monkeypatch.setattr(report, "open_windows", lambda source: split)
    return report.summarize(shards, tmp_path, THRESHOLD)


def test_the_best_caption_of_each_recording_counts(summary):
    assert (summary["windows"], summary["accepted"]) == (4, 2)
    np.testing.assert_allclose(sorted(summary["scores"]), [0.2, 0.5, 0.9], rtol=1e-6)
    assert [shard.start + row for shard, row, _ in summary["examples"]] == [0, 1, 2]
    field = summary["sources"]["field/1.0.0:train"]
    assert (field["windows"], field["accepted"]) == (3, 2)
    assert field["mean_score"] == pytest.approx((0.9 + 0.5 + 0.2) / 3)


def test_each_expert_is_summarized_by_its_own_best_captions(summary):
    captioning, labels = summary["experts"]["captioning"], summary["experts"]["labels"]
    assert (captioning["candidates"], captioning["passes"], captioning["chosen"]) == (3, 1, 1)
    assert (labels["candidates"], labels["passes"], labels["chosen"]) == (2, 2, 1)
    assert captioning["mean_score"] == pytest.approx((0.9 + 0.1 + 0.2) / 3)


def test_the_printed_summary_states_numbers_and_shares(summary):
    lines = report.text("enhanced/mine", summary).splitlines()
    assert lines[0] == "enhanced/mine: 2 of 4 windows accepted (50.0%) at threshold 0.5"
    assert [line.split()[:4] for line in lines[2:4]] == [
        ["field/1.0.0:train", "3", "2", "66.7%"],
        ["lab/1.0.0:train", "1", "0", "0.0%"],
    ]


def test_the_page_plays_each_example_and_shows_its_candidates(summary):
    page = report.page("enhanced/mine", {"experts": ["captioning", "labels"]}, summary)
    assert page.count("<audio ") == page.count("data:audio/flac;base64,") == 3
    assert page.count('<article class="accepted">') == 2
    assert "“&lt;hiss&gt;”" in page and "<hiss>" not in page
    assert "1 candidate<" in page and "2 candidates<" in page
    assert "crow, CC0" in page and "rain, from 1.0 s, CC0" in page
    assert "captioning, labels" in page  # the settings


def test_a_histogram_counts_every_score_once_and_has_an_edge_at_the_threshold():
    scores = np.array([-0.21, 0.3, 0.311, 0.312, 0.98], np.float32)
    bins, ticks = report.histogram(scores, 0.3115)
    assert sum(count for *_, count in bins) == len(scores)
    assert sum(count for left, _, count in bins if left >= 0.3115) == 2
    assert 0.3115 in [left for left, *_ in bins]
    np.testing.assert_allclose(ticks, np.arange(-2, 10) / 10)


@pytest.mark.parametrize("scores", [[], [0.5], [0.5, 0.5]])
def test_a_histogram_of_equal_scores_has_a_width(scores):
    bins, _ = report.histogram(np.array(scores, np.float32), 0.5)
    assert sum(count for *_, count in bins) == len(scores)
    assert all(left < right for left, right, _ in bins)
