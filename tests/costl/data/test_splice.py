"""Splicing: parts of videos in another order or of other videos, with every moment whole and every label where it belongs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_batch import MemoryCache, query

from costl.data.batch import collate, video_ids
from costl.data.sampler import plan_epoch
from costl.data.splice import Part, VideoLabels, draw_parts, splice_targets

SECONDS = st.floats(0, 60, allow_nan=False).map(lambda s: round(s, 1))
WINDOW = st.tuples(SECONDS, SECONDS).map(sorted).filter(lambda w: w[1] - w[0] > 0.1).map(tuple)


class CodedCache(MemoryCache):
    """No two of its clips are the same: MemoryCache repeats itself after ten clips."""

    def tokens(self, video_id, *, clips=slice(None), patches=True):
        code = 64 * list(self.durations_s).index(video_id) + np.arange(self.grid(video_id).clips)
        return np.repeat(code[:, None, None], 5 if patches else 1, 1).astype(np.float16)[clips]


@st.composite
def batches(draw):
    """Some queries about some videos of different lengths, and their cache."""
    durations = draw(st.lists(st.integers(1, 60).map(float), min_size=1, max_size=5))
    features = CodedCache({f"v{v}": seconds for v, seconds in enumerate(durations)})
    queries = []
    for number in range(draw(st.integers(1, 8))):
        vid = draw(st.sampled_from(sorted(features.durations_s)))
        seconds = features.durations_s[vid]
        windows = [(a, min(b, seconds)) for a, b in draw(st.lists(WINDOW, max_size=3)) if a < seconds]
        queries.append(query(number, vid, windows, text=f"text {number}", duration=seconds))
    return queries, features


@given(batches(), st.integers(0, 2**32 - 1))
def test_each_clip_of_a_moment_is_still_that_clip(batch, seed):
    """A token of CodedCache encodes its video and clip, so that the tokens in a moment say where they come from."""
    queries, features = batch
    generator = torch.Generator().manual_seed(seed)
    (planned, *others) = plan_epoch(
        queries, features, batch_size=99, negative_pairs=False, generator=generator, splice=1.0
    )
    assert not others
    whole = collate(planned.queries, features, patches=True)
    spliced = collate(planned.queries, features, patches=True, parts=planned.parts)
    assert spliced.frame_mask.sum(1).le(whole.frame_mask.sum(1)).all()
    for row, video in enumerate(spliced.video.tolist()):
        assert torch.equal(spliced.moment_mask[row], whole.moment_mask[row])
        for before, after, is_real in zip(whole.moments[row], spliced.moments[row], whole.moment_mask[row], strict=True):
            if is_real:
                assert torch.allclose(after - before, (after - before).round(), atol=1e-4)  # by whole clips
                old, new = (slice(int(m[0]), int(np.ceil(m[1]))) for m in (before.tolist(), after.tolist()))
                assert torch.equal(spliced.inputs.tokens[video, new], whole.inputs.tokens[video, old])
        # A clip is relevant, and has a rating, where the clip it was is and has.
        count = int(spliced.frame_mask[video].sum())
        source = sources(spliced.inputs.tokens[video, :count], video_ids(planned.queries), features)
        own = [(i, clip) for i, (vid, clip) in enumerate(source) if vid == planned.queries[row].vid]
        for name in ("relevant", "ratings"):
            new, old = getattr(spliced, name)[row], getattr(whole, name)[row]
            assert all(new[i] == old[clip] for i, clip in own)
            assert not new[[i for i in range(len(new)) if i not in dict(own)]].any()
            assert new.sum() == old.sum()


def sources(tokens: torch.Tensor, vids: list[str], features: MemoryCache) -> list[tuple[str, int]]:
    """The video and the clip that each of these tokens encodes."""
    known = {float(clip[0, 0]): (vid, i) for vid in vids for i, clip in enumerate(features.tokens(vid))}
    return [known[float(clip[0, 0])] for clip in tokens]


@given(batches(), st.integers(0, 2**32 - 1))
def test_no_part_of_another_video_has_a_label(batch, seed):
    queries, features = batch
    (planned,) = plan_epoch(
        queries, features, batch_size=99, negative_pairs=False, generator=torch.Generator().manual_seed(seed), splice=1.0
    )
    vids = video_ids(planned.queries)
    assert len(planned.parts) == len(vids)
    for video, parts in enumerate(planned.parts):
        clips = [(part.video, clip) for part in parts for clip in range(part.start, part.stop)]
        assert all(0 <= clip < features.grid(vids[v]).clips for v, clip in clips)
        own = [clip for v, clip in clips if v == video]
        assert len(own) == len(set(own))
        for v, clip in clips:
            moments = [w for q in planned.queries if q.vid == vids[v] for w in q.windows]
            assert v == video or not [w for w in moments if w[0] / 2 < clip + 1 and w[1] / 2 > clip]


def labels(clips: int, *moments: tuple[float, float]) -> VideoLabels:
    array = np.array(moments, float).reshape(-1, 2)
    clip = np.arange(clips)
    return VideoLabels(array, ((array[:, :1] < clip + 1) & (array[:, 1:] > clip)).any(0))


def drawn(videos: list[VideoLabels], *, share: float = 1.0, times: int = 200) -> list[tuple[tuple[Part, ...], ...]]:
    return [draw_parts(videos, share=share, generator=torch.Generator().manual_seed(seed)) for seed in range(times)]


def test_moments_change_their_place_and_their_neighbours():
    videos = [labels(20, (8, 12)), labels(20, (3, 5)), labels(20)]
    places = set()
    for parts, *_ in drawn(videos):
        offset = 0
        for part in parts:
            if part.video == 0 and part.start <= 8 and part.stop >= 12:
                places.add(offset + 8 - part.start)
            offset += part.stop - part.start
    assert len(places) >= 8
    assert {part.video for parts, *_ in drawn(videos) for part in parts} == {0, 1, 2}
    lengths = {sum(part.stop - part.start for part in parts) for parts, *_ in drawn(videos) if parts}
    assert min(lengths) < 20 == max(lengths)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_about_the_given_share_of_the_videos_is_spliced(share):
    spliced = [bool(parts) for videos in drawn([labels(20, (8, 12))] * 5, share=share) for parts in videos]
    assert np.mean(spliced) == pytest.approx(share, abs=0.05)


WHOLE = {"one clip": labels(1), "two clips": labels(2), "a moment from end to end": labels(30, (0, 30))}


@pytest.mark.parametrize("name", WHOLE)
def test_a_video_that_cannot_be_cut_stays_whole(name):
    assert not any(any(videos) for videos in drawn([WHOLE[name]], times=30))


def test_ratings_without_moments_are_labels_even_where_they_are_zero():
    rated = query(1, "a", (), clip_ids=(0, 1, 2), saliency=((0,), (4,), (0,)), duration=40.0)
    other = query(2, "b", (), duration=40.0)
    features = MemoryCache({"a": 40.0, "b": 40.0})
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        (planned,) = plan_epoch([rated, other], features, batch_size=9, negative_pairs=False, generator=generator, splice=1.0)
        first = video_ids(planned.queries).index("a")
        assert sorted((p.start, p.stop) for p in planned.parts[first])[0][0] == 0
        assert sum(p.stop - p.start for p in planned.parts[first]) == 20 and {p.video for p in planned.parts[first]} <= {first}
        assert first not in {p.video for p in planned.parts[1 - first]}


def test_targets_follow_their_clips():
    targets = np.array([[1.0, 2.5], [7.0, 9.0]]), np.arange(10.0), np.arange(10) % 2 == 0
    parts = [Part(0, 6, 10), Part(1, 3, 5), Part(0, 0, 4)]
    moments, ratings, relevant = splice_targets(targets, parts, 0, 12)
    assert moments.tolist() == [[7.0, 8.5], [1.0, 3.0]]
    assert ratings.tolist() == [6, 7, 8, 9, 0, 0, 0, 1, 2, 3, 0, 0]
    assert relevant.tolist() == [True, False, True, False, False, False, True, False, True, False, False, False]


def test_a_video_without_parts_is_read_as_a_whole():
    queries = [query(1, "a"), query(2, "b")]
    features = MemoryCache({"a": 10.0, "b": 16.0})
    batch = collate(queries, features, patches=True, parts=((), (Part(1, 4, 8), Part(0, 0, 2))))
    assert torch.equal(batch.inputs.tokens[0, :5], collate(queries[:1], features, patches=True).inputs.tokens[0])
    assert batch.frame_mask.sum(1).tolist() == [5, 6]


def test_a_clip_that_is_not_finite_is_named_by_its_own_video_and_place():
    from costl.pipeline.errors import CacheError

    class Damaged(MemoryCache):
        def tokens(self, video_id, *, clips=slice(None), patches=True):
            tokens = np.array(super().tokens(video_id, patches=patches))
            tokens[3 if video_id == "b" else len(tokens) :] = np.nan
            return tokens[clips]

    features = Damaged({"a": 20.0, "b": 20.0})
    with pytest.raises(CacheError, match=r"video 'b', clip 4"):
        collate([query(1, "a"), query(2, "b")], features, patches=True, parts=((Part(0, 0, 2), Part(1, 4, 6)), (Part(1, 0, 2),)))
