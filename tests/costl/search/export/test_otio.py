"""OpenTimelineIO timelines, read back by OpenTimelineIO, and as the FCPXML that its adapter writes."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_hits import NTSC, RATES, hit, known_hits, numbers_at

from costl.search.export.otio import otio_text

otio = pytest.importorskip("opentimelineio", reason="OpenTimelineIO comes with the extra `test`")


def read(text: str) -> Any:
    return otio.adapters.read_from_string(text, "otio_json")


def frames(time_range: Any) -> tuple[float, float]:
    return time_range.start_time.value, time_range.end_time_exclusive().value


@pytest.mark.parametrize("name", RATES)
@settings(max_examples=40)
@given(data=st.data())
def test_opentimelineio_reads_the_frames_of_every_hit(name, data):
    rate, drop_frame = RATES[name]
    hits = data.draw(known_hits(rate))
    numbers = numbers_at(rate, drop_frame, start_frame=1000)
    timeline = read(otio_text([(known.hit, numbers) for known in hits]))
    (track,) = timeline.video_tracks()
    at = 0.0
    for clip, known in zip(track, hits, strict=True):
        length = known.stop - known.first
        assert frames(clip.source_range) == (1000 + known.first, 1000 + known.stop)
        assert clip.source_range.start_time.rate == clip.source_range.duration.rate == float(rate)
        assert frames(clip.media_reference.available_range) == (1000, 1000 + numbers.frames)
        assert frames(track.range_of_child(clip)) == (at, at + length)
        (marker,) = clip.markers
        assert marker.marked_range == clip.source_range
        at += length


def test_a_clip_has_its_media_and_a_marker_with_query_and_score(tmp_path):
    one = hit(1.0, 2.5, query='a\n"dog"', name="sub/ä b#.mp4", score=0.875)
    (track,) = read(otio_text([(one, numbers_at(Fraction(25)))])).video_tracks()
    (clip,) = track
    (marker,) = clip.markers
    assert clip.name == clip.media_reference.name == "ä b#.mp4"
    assert clip.media_reference.target_url == Path("/videos/sub/ä b#.mp4").as_uri() == "file:///videos/sub/%C3%A4%20b%23.mp4"
    assert (marker.name, marker.comment, marker.color) == ('a "dog"', "score 0.88", "BLUE")
    assert dict(marker.metadata["costl"]) == {"query": 'a\n"dog"', "score": 0.875, "start_s": 1.0, "end_s": 2.5}


def test_one_timeline_holds_videos_of_several_rates():
    hits = [(hit(2.0, 3.0), numbers_at(24 * NTSC)), (hit(0.0, 1.0, name="b.mp4"), numbers_at(Fraction(120)))]
    (track,) = read(otio_text(hits)).video_tracks()
    assert [frames(clip.source_range) for clip in track] == [(47, 72), (0, 120)]


def test_no_hits_make_an_empty_track():
    (track,) = read(otio_text([])).tracks
    assert len(track) == 0 and track.kind == "Video"


@pytest.mark.parametrize("name", RATES)
def test_the_adapter_writes_fcpxml_with_exact_times(name):
    pytest.importorskip("otio_fcpx_xml_adapter", reason="the writer of FCPXML comes with the extra `test`")
    rate, drop_frame = RATES[name]
    first, length = 86_399, 101
    one = hit(float(first / rate), float((first + length) / rate), query="a & b")
    timeline = read(otio_text([(one, numbers_at(rate, drop_frame))]))
    text = otio.adapters.write_to_string(timeline, "fcpx_xml")
    xml = ElementTree.fromstring(text)
    (clip,) = xml.iterfind(".//spine/clip")
    (marker,) = clip.iterfind("marker")
    (asset,) = xml.iterfind("./resources/asset")
    assert xml.find("./resources/format") is not None
    assert (asset.get("src"), clip.get("name"), marker.get("value")) == ("file:///videos/a.mp4", "a.mp4", "a & b")
    for element in (clip, marker):
        assert seconds(element.get("start")) == first / rate and seconds(element.get("duration")) == length / rate
    if rate.denominator == 1:  # the adapter reads back no other rates
        (read_again,) = otio.adapters.read_from_string(text, "fcpx_xml").find_clips()
        assert frames(read_again.source_range) == (first, first + length)


def seconds(text: str | None) -> Fraction:
    assert text is not None and text.endswith("s")
    return Fraction(text[:-1])
