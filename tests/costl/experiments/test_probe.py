"""The diagnosis: probes against plain ridge regression, questions against the truth, and synthetic tokens."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from costl.commands import main
from costl.experiments.linear_probe import DEFAULT_STRENGTH, fit_probe
from costl.experiments.probe import SOURCES, TOPICS, diagnose, run_probes
from costl.experiments.world_truth import Scene, draw_questions, read_scenes
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import UsageError
from costl.pipeline.world.render import COLOURS, SHAPES
from costl.pipeline.world.tracks import create_tracks

KINDS = [(colour, shape) for colour in ("red", "blue") for shape in ("ball", "box", "star")]


def random_questions(count: int, width: int = 5) -> tuple[np.ndarray, list[tuple[str, str]], np.ndarray]:
    rng = np.random.default_rng(0)
    kinds = [KINDS[i] for i in rng.integers(len(KINDS), size=count)]
    return rng.normal(size=(count, width)), kinds, rng.normal(size=(count, 2))


def test_a_probe_is_ridge_regression_with_weights_by_colour_and_shape():
    tokens, kinds, answers = random_questions(40)
    probe = fit_probe(tokens, kinds, answers)
    centred = tokens - tokens.mean(0)
    scale = np.square(centred).sum(1).mean()
    names = ["", "ball", "blue", "box", "red", "star"]
    rows = np.zeros((40, 6, 6))
    for i, (x, kind) in enumerate(zip(centred, kinds, strict=True)):
        for part in ("", *kind):
            rows[i, names.index(part)] = [*(x / np.sqrt(scale)), 1]
    rows = rows.reshape(40, -1)
    ridge = DEFAULT_STRENGTH * np.square(rows).sum() / 40
    weights = np.linalg.solve(rows.T @ rows + ridge * np.eye(36), rows.T @ answers)
    np.testing.assert_allclose(probe.predict(tokens, kinds), rows @ weights, rtol=1e-6, atol=1e-8)


def test_a_linear_answer_is_read_for_unseen_pairs_of_attributes():
    rng = np.random.default_rng(1)
    true = {part: rng.normal(size=6) for part in ("red", "blue", "ball", "box", "star")}
    tokens, kinds = rng.normal(size=(600, 6)), [KINDS[i] for i in rng.integers(len(KINDS), size=600)]
    answers = np.array([[x @ (true[c] + true[s])] for x, (c, s) in zip(tokens, kinds, strict=True)])
    is_fitted = np.array([kind != ("red", "star") for kind in kinds])
    held_out = np.arange(is_fitted.sum()) % 5 == 0
    probe = fit_probe(tokens[is_fitted], [k for k in kinds if k != ("red", "star")], answers[is_fitted], held_out=held_out)
    predicted = probe.predict(tokens[~is_fitted], [("red", "star")] * int((~is_fitted).sum()))
    assert np.abs(predicted - answers[~is_fitted]).max() < 0.01 * np.abs(answers).max()


def test_noise_is_regularised_more_than_a_linear_answer():
    tokens, kinds, noise = random_questions(200, width=60)
    held_out = np.arange(200) % 5 == 0
    from_noise = fit_probe(tokens, kinds, noise, held_out=held_out).predict(tokens, kinds)
    linear = tokens[:, :2] * 1.0
    from_linear = fit_probe(tokens, kinds, linear, held_out=held_out).predict(tokens, kinds)
    assert np.square(from_noise).mean() < 0.3 * np.square(noise).mean()
    assert np.square(from_linear - linear).mean() < 0.1 * np.square(linear).mean()


@pytest.mark.parametrize("topic", TOPICS)
def test_questions_agree_with_the_truth(world, topic):
    features = CacheReader(world.cache)
    path = world.videos / "objects.jsonl"
    rows = {row["vid"]: row["objects"] for row in map(json.loads, path.read_text().splitlines())}
    scenes = list(read_scenes(path, features).values())
    questions = draw_questions(topic, scenes, count=60, rng=np.random.default_rng(0))
    assert len(questions) == 60 and len({repr(question) for question in questions}) > 10
    for one in questions:
        clip, (x, y) = one.clips[0], one.positions[0]
        there = {tuple(o["thing"].split()[1:]): o for o in rows[one.vid] if o["centres"][clip] is not None}
        if topic in ("which", "bound"):
            assert (one.kind in there) == bool(one.answer[0])
            others = [kind for kind in there if kind != one.kind]
            if topic == "bound":
                assert any(c == one.kind[0] for c, _ in others) and any(s == one.kind[1] for _, s in others)
            continue
        here = there[one.kind]["centres"]
        assert here[clip] == [x, y]
        if topic == "where":
            assert one.answer == (min(int(y * 3), 2) * 3 + min(int(x * 3), 2),)
        elif topic == "size":
            assert one.answer == (there[one.kind]["diameter"],)
        else:
            assert one.answer == pytest.approx((here[clip + 1][0] - x, here[clip + 1][1] - y))
    if topic in ("which", "bound"):
        assert sum(one.answer[0] for one in questions) == 30
    if topic == "motion":
        assert sum(max(map(abs, one.answer)) >= 0.04 for one in questions) == 30


def test_a_size_is_asked_in_a_clip_and_answered_for_that_clip():
    """Of an object that changes its size, as a fine world has them."""
    sizes = np.array([[0.09, 0.12, 0.15, 0.15], [0.1, 0.1, 0.1, 0.1]])
    scene = Scene("a", (("red", "ball"), ("blue", "cup")), sizes, np.full((2, 4, 2), 0.5))
    questions = draw_questions("size", [scene], count=20, rng=np.random.default_rng(0))
    assert {(one.kind[1], one.clips[0], one.answer[0]) for one in questions} == {
        *(("ball", clip, size) for clip, size in enumerate([0.09, 0.12, 0.15])),
        *(("cup", clip, 0.1) for clip in range(3)),
    }


class SyntheticFeatures:
    """Videos with known tokens: a patch has the colour and shape of the object on it and its own position, and the frame
    token has the colours and shapes of all objects."""

    patch_grid = (6, 6)

    def __init__(self, videos: int) -> None:
        rng = np.random.default_rng(0)
        stories = [create_tracks(rng, clips=12, objects=5, hard=False, unseen=False) for _ in range(videos)]
        self.scenes = [
            Scene(
                str(i),
                tuple((track.thing.colour, track.thing.shape) for track in tracks),
                np.stack([track.middle_diameters() for track in tracks]),
                np.stack([track.centres() for track in tracks]),
            )
            for i, tracks in enumerate(stories)
        ]
        self.codes = {part: rng.normal(size=24) for part in (*COLOURS, *SHAPES)}
        self.positions = 0.3 * rng.normal(size=(36, 24))  # smaller than the codes of objects

    def tokens(self, video_id: str) -> np.ndarray:
        scene = self.scenes[int(video_id)]
        tokens = np.repeat(np.concatenate([np.zeros((1, 24)), self.positions])[None], 12, 0)
        for clip in range(12):
            for i in scene.visible(clip):
                column, row = (scene.centres[i, clip] * 6).astype(int)
                code = sum(self.codes[part] for part in scene.kinds[i])
                tokens[clip, 1 + row * 6 + column] += 2 * code
                tokens[clip, 0] += code
        return tokens.astype(np.float16)


def test_patches_score_higher_where_the_frame_token_lacks_the_answer(monkeypatch):
    monkeypatch.setattr("costl.experiments.probe.MAX_QUESTIONS", 450)
    features = SyntheticFeatures(90)
    diagnosis = run_probes(features, features.scenes[:60], {"new": features.scenes[60:]})
    scores = diagnosis.scores["new"]
    assert list(scores) == list(TOPICS) and list(scores["which"]) == [*SOURCES, "chance"]
    assert diagnosis.asked == {"new": dict.fromkeys(TOPICS, 450)}
    which, bound, where, motion = (scores[name] for name in ("which", "bound", "where", "motion"))
    assert which["frame token"] > 75 and which["patch there"] > 85  # the frame token has the colours and shapes
    assert bound["patch there"] > bound["frame token"] + 15  # not which belong together
    assert where["found patch"] > where["frame token"] + 30  # nor where they are
    assert which["chance"] == bound["chance"] == 50 and where["chance"] < 30 and abs(motion["chance"]) < 0.1


def test_the_command_prints_a_block_a_split_and_a_row_a_question(world, monkeypatch):
    monkeypatch.setattr("costl.experiments.probe.MAX_QUESTIONS", 60)
    arguments = ["study", "diagnose", "--cache", str(world.cache), "--split", "test", "--split", "test_unseen"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0
    data = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    left_out = [note.split(":")[0] for note in data["notes"]]
    assert set(left_out) <= {"bound"} and all(f"{name}: cannot be asked" in result.stderr for name in left_out)
    topics = [topic for topic in TOPICS if topic not in left_out]
    rows = [line.split() for line in result.stdout.splitlines() if line and "---" not in line]
    assert [row[1] for row in rows] == ["test", *topics, "test_unseen", *topics]
    assert data["asked"]["test"]["where"] == 60
    assert f"{data['scores']['test']['where']['chance']:.1f}" == rows[1 + topics.index("where")][-2]


def test_a_wrong_truth_file_is_refused_in_one_sentence(world, tmp_path):
    copy = world.copy(tmp_path)
    path = copy.videos / "objects.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], '{"vid": "x"}']))
    with pytest.raises(UsageError, match=r"objects\.jsonl:3: not the objects of a sample world"):
        diagnose(copy.cache, objects=path)
    row = json.loads(lines[0])
    row["objects"][0]["centres"].append(None)
    for thing in row["objects"][1:]:
        thing["centres"].append(None)
    path.write_text(json.dumps(row))
    with pytest.raises(UsageError, match="13 clips of two seconds, but 12"):
        diagnose(copy.cache, objects=path)
    path.write_text(lines[-1])
    with pytest.raises(UsageError, match="no video of 'test' has a row in"):
        diagnose(copy.cache, objects=path)
    path.unlink()
    with pytest.raises(UsageError, match="Pass its path as --objects"):
        diagnose(copy.cache, objects=path)
    with pytest.raises(UsageError, match="no split 'tset'"):
        diagnose(world.cache, splits=["tset"], objects=world.videos / "objects.jsonl")
