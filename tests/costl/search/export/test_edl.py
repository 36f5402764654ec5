"""Edit decision lists, read back by OpenTimelineIO's adapter: every frame is the right one at every rate."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_hits import NTSC, RATES, KnownHit, hit, known_hits, numbers_at

from costl.pipeline.errors import UsageError
from costl.search.export.edl import edl_text

pytest.importorskip("otio_cmx3600_adapter", reason="the reader of EDL comes with the extra `test`")


def read_clips(text: str, rate: Fraction) -> list[Any]:
    """The clips that OpenTimelineIO reads."""
    import opentimelineio as otio

    timeline = otio.adapters.read_from_string(text, "cmx_3600", rate=float(rate))
    assert all(isinstance(child, otio.schema.Clip) for track in timeline.tracks for child in track), "no gaps"
    return [clip for track in timeline.tracks for clip in track]


def spans(text: str, rate: Fraction) -> list[tuple[float, float]]:
    """The frames (first, stop) of the clips that OpenTimelineIO reads."""
    ranges = [clip.source_range for clip in read_clips(text, rate)]
    assert not [read for read in ranges if read.start_time.rate != float(rate)]
    return [(read.start_time.value, read.end_time_exclusive().value) for read in ranges]


@pytest.mark.parametrize("name", RATES)
@settings(max_examples=40)
@given(data=st.data())
def test_opentimelineio_reads_the_frames_of_every_hit(name, data):
    rate, drop_frame = RATES[name]
    hits: list[KnownHit] = data.draw(known_hits(rate))
    start_frame = data.draw(st.sampled_from([0, int(3600 * rate), int(11 * 3600 * rate) + 17]))
    numbers = numbers_at(rate, drop_frame, start_frame)
    text = edl_text([(known.hit, numbers) for known in hits])
    assert f"FCM: {'DROP' if drop_frame else 'NON-DROP'} FRAME" in text
    assert spans(text, rate) == [(start_frame + known.first, start_frame + known.stop) for known in hits]


def test_a_list_is_as_resolve_writes_and_reads_it():
    numbers = numbers_at(30 * NTSC, drop_frame=True)
    hits = [hit(60.06, 62.0, query='a "dog", 50 % | wet', score=0.876), hit(0.0, 1.0, name="sub/b c.mov")]
    assert edl_text([(one, numbers) for one in hits]).splitlines() == [
        'TITLE: CoSTL: a "dog", 50 % | wet, a cat',
        "FCM: DROP FRAME",
        "",
        "001  AX       V     C        00:01:00;02 00:01:02;01 01:00:00;00 01:00:01;29",
        ' |C:ResolveColorBlue |M:a "dog", 50 % / wet (0.88) |D:59',
        "* FROM CLIP NAME: a.mp4",
        "* SOURCE FILE: /videos/a.mp4",
        "",
        "002  AX       V     C        00:00:00;00 00:00:01;00 01:00:01;29 01:00:02;29",
        " |C:ResolveColorBlue |M:a cat (0.50) |D:30",
        "* FROM CLIP NAME: b c.mov",
        "* SOURCE FILE: /videos/sub/b c.mov",
    ]


@given(st.text(min_size=1), st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1))
def test_no_query_or_name_breaks_a_list(query, name):
    numbers = numbers_at(Fraction(25))
    text = edl_text([(hit(1.0, 2.0, query=query, name=f"a{name}"), numbers), (hit(0.0, 1.0), numbers)])
    assert spans(text, Fraction(25)) == [(25, 50), (0, 25)]
    first, second = read_clips(text, Fraction(25))
    assert first.name == " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", " ", f"a{name}").split())
    assert second.name == "a.mp4" and "|C:ResolveColorBlue |M:a cat (0.50) |D:25" in second.metadata["cmx_3600"]["comments"]


def test_timecode_starts_again_after_a_day_and_an_end_stays_behind():
    day = 24 * 3600 * 25
    numbers = numbers_at(Fraction(25), start_frame=day - 50)
    text = edl_text([(hit(0.0, 1.0), numbers), (hit(1.0, 3.0), numbers), (hit(3.0, 4.0), numbers)])
    assert spans(text, Fraction(25)) == [(day - 50, day - 25), (day - 25, day + 25), (25, 50)]


def test_a_thousand_hits_fit():
    numbers = numbers_at(Fraction(60))
    assert len(read_clips(edl_text([(hit(i, i + 1.0), numbers) for i in range(1001)]), Fraction(60))) == 1001


def test_no_hits_make_an_empty_list():
    assert read_clips(edl_text([]), Fraction(25)) == []


def test_a_list_has_one_rate_and_one_that_timecode_can_count():
    two = [(hit(0, 1), numbers_at(Fraction(25))), (hit(0, 1, name="b.mp4"), numbers_at(30 * NTSC))]
    with pytest.raises(UsageError, match=r"a.mp4 has 25.00 and b.mp4 29.97 frames.*folder with --out.*--format otio"):
        edl_text(two)
    for rate in (Fraction(120), Fraction(981, 50)):
        with pytest.raises(UsageError, match=rf"^a.mp4: {float(rate):.2f} frames a second.*--format otio"):
            edl_text([(hit(0, 1), numbers_at(rate))])
