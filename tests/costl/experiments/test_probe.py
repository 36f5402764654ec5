"""The diagnostic: readers against plain ridge regression, questions against the truth, and a made-up cache that is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from costl.commands import main
from costl.experiments.linear_probe import MIDDLING, learn
from costl.experiments.probe import QUESTIONS, SOURCES, diagnose, read_linearly
from costl.experiments.world_truth import Scene, questions, read_scenes
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.errors import UsageError
from costl.pipeline.world.render import COLOURS, SHAPES
from costl.pipeline.world.script import tell

KINDS = [(colour, shape) for colour in ("red", "blue") for shape in ("ball", "box", "star")]


def random_lesson(count: int, width: int = 5) -> tuple[np.ndarray, list[tuple[str, str]], np.ndarray]:
    rng = np.random.default_rng(0)
    kinds = [KINDS[i] for i in rng.integers(len(KINDS), size=count)]
    return rng.normal(size=(count, width)), kinds, rng.normal(size=(count, 2))


def test_a_reader_is_ridge_regression_on_weights_of_all_of_each_colour_and_of_each_shape():
    tokens, kinds, answers = random_lesson(40)
    reader = learn(tokens, kinds, answers)
    centred = tokens - tokens.mean(0)
    scale = np.square(centred).sum(1).mean()
    names = ["", "ball", "blue", "box", "red", "star"]
    rows = np.zeros((40, 6, 6))
    for i, (x, kind) in enumerate(zip(centred, kinds, strict=True)):
        for part in ("", *kind):
            rows[i, names.index(part)] = [*(x / np.sqrt(scale)), 1]
    rows = rows.reshape(40, -1)
    ridge = MIDDLING * np.square(rows).sum() / 40
    weights = np.linalg.solve(rows.T @ rows + ridge * np.eye(36), rows.T @ answers)
    np.testing.assert_allclose(reader.read(tokens, kinds), rows @ weights, rtol=1e-6, atol=1e-8)


def test_what_is_linear_is_read_of_pairs_never_seen_together():
    rng = np.random.default_rng(1)
    true = {part: rng.normal(size=6) for part in ("red", "blue", "ball", "box", "star")}
    tokens, kinds = rng.normal(size=(600, 6)), [KINDS[i] for i in rng.integers(len(KINDS), size=600)]
    answers = np.array([[x @ (true[c] + true[s])] for x, (c, s) in zip(tokens, kinds, strict=True)])
    seen = np.array([kind != ("red", "star") for kind in kinds])
    held_out = np.arange(seen.sum()) % 5 == 0
    reader = learn(tokens[seen], [k for k in kinds if k != ("red", "star")], answers[seen], held_out=held_out)
    said = reader.read(tokens[~seen], [("red", "star")] * int((~seen).sum()))
    assert np.abs(said - answers[~seen]).max() < 0.01 * np.abs(answers).max()


def test_noise_is_held_back_more_than_what_can_be_read():
    tokens, kinds, noise = random_lesson(200, width=60)
    held_out = np.arange(200) % 5 == 0
    unread = learn(tokens, kinds, noise, held_out=held_out).read(tokens, kinds)
    linear = tokens[:, :2] * 1.0
    well_read = learn(tokens, kinds, linear, held_out=held_out).read(tokens, kinds)
    assert np.square(unread).mean() < 0.3 * np.square(noise).mean()
    assert np.square(well_read - linear).mean() < 0.1 * np.square(linear).mean()


@pytest.mark.parametrize("question", QUESTIONS)
def test_questions_are_true_to_the_world(world, question):
    features = CacheReader(world.cache)
    path = world.videos / "objects.jsonl"
    rows = {row["vid"]: row["objects"] for row in map(json.loads, path.read_text().splitlines())}
    scenes = list(read_scenes(path, features).values())
    asked = questions(question, scenes, count=60, rng=np.random.default_rng(0))
    assert len(asked) == 60 and len({repr(one) for one in asked}) > 10
    for one in asked:
        clip, (x, y) = one.clips[0], one.places[0]
        there = {tuple(o["thing"].split()[1:]): o for o in rows[one.vid] if o["centres"][clip] is not None}
        if question in ("which", "bound"):
            assert (one.kind in there) == bool(one.answer[0])
            others = [kind for kind in there if kind != one.kind]
            if question == "bound":
                assert any(c == one.kind[0] for c, _ in others) and any(s == one.kind[1] for _, s in others)
            continue
        here = there[one.kind]["centres"]
        assert here[clip] == [x, y]
        if question == "where":
            assert one.answer == (min(int(y * 3), 2) * 3 + min(int(x * 3), 2),)
        elif question == "size":
            assert one.answer == (there[one.kind]["diameter"],)
        else:
            assert one.answer == pytest.approx((here[clip + 1][0] - x, here[clip + 1][1] - y))
    if question in ("which", "bound"):
        assert sum(one.answer[0] for one in asked) == 30
    if question == "motion":
        assert sum(max(map(abs, one.answer)) >= 0.04 for one in asked) == 30


class Painted:
    """Videos whose tokens are known: a thing's patch carries its colour and shape, every patch its place, and the frame
    token which colours and shapes there are, on whatever thing."""

    patch_grid = (6, 6)

    def __init__(self, videos: int) -> None:
        rng = np.random.default_rng(0)
        told = [tell(rng, clips=12, objects=5, hard=False, unseen=False) for _ in range(videos)]
        self.scenes = [
            Scene(
                str(i),
                tuple((track.thing.colour, track.thing.shape) for track in tracks),
                np.array([track.diameter for track in tracks]),
                np.stack([track.centres() for track in tracks]),
            )
            for i, tracks in enumerate(told)
        ]
        self.codes = {part: rng.normal(size=24) for part in (*COLOURS, *SHAPES)}
        self.places = 0.3 * rng.normal(size=(36, 24))  # quieter than what is there

    def tokens(self, video_id: str) -> np.ndarray:
        scene = self.scenes[int(video_id)]
        tokens = np.repeat(np.concatenate([np.zeros((1, 24)), self.places])[None], 12, 0)
        for clip in range(12):
            for i in scene.here(clip):
                column, row = (scene.centres[i, clip] * 6).astype(int)
                code = sum(self.codes[part] for part in scene.things[i])
                tokens[clip, 1 + row * 6 + column] += 2 * code
                tokens[clip, 0] += code
        return tokens.astype(np.float16)


def test_patches_that_carry_what_the_frame_token_lacks_are_told_from_it(monkeypatch):
    monkeypatch.setattr("costl.experiments.probe.COUNT", 800)
    world = Painted(90)
    found = read_linearly(world, world.scenes[:60], {"new": world.scenes[60:]}, seed=0)
    assert list(found.scores["new"]) == list(QUESTIONS) and list(found.scores["new"]["which"]) == [*SOURCES, "chance"]
    assert found.asked == {"new": dict.fromkeys(QUESTIONS, 800)}
    which, bound, where, motion = (found.scores["new"][name] for name in ("which", "bound", "where", "motion"))
    assert which["frame token"] > 75 and which["patch there"] > 85  # the frame token knows what there is
    assert bound["patch there"] > bound["frame token"] + 15  # not what belongs together
    assert where["found patch"] > where["frame token"] + 30  # nor where
    assert which["chance"] == bound["chance"] == 50 and where["chance"] < 30 and abs(motion["chance"]) < 0.1


def test_the_command_prints_a_row_for_each_question_and_a_block_for_each_split(world, monkeypatch):
    monkeypatch.setattr("costl.experiments.probe.COUNT", 60)
    arguments = ["study", "diagnose", "--cache", str(world.cache), "--split", "test", "--split", "test_unseen"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0
    told = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    left_out = [note.split(":")[0] for note in told["notes"]]
    assert set(left_out) <= {"bound"} and all(f"{name}: cannot be asked" in result.stderr for name in left_out)
    asked = [question for question in QUESTIONS if question not in left_out]
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines if line] == ["test", *asked, "test_unseen", *asked]
    assert told["asked"]["test"]["where"] == 60
    assert f"{told['scores']['test']['where']['chance']:.1f}" == lines[1 + asked.index("where")].split()[-1]


def test_what_cannot_be_diagnosed_is_said_in_one_sentence(world, tmp_path):
    copy = world.copy(tmp_path)
    path = copy.videos / "objects.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], '{"vid": "x"}']))
    with pytest.raises(UsageError, match=r"objects\.jsonl:3: not the truth of a sample world"):
        diagnose(copy.cache, objects=path)
    row = json.loads(lines[0])
    row["objects"][0]["centres"].append(None)
    for thing in row["objects"][1:]:
        thing["centres"].append(None)
    path.write_text(json.dumps(row))
    with pytest.raises(UsageError, match="13 clips of two seconds, but 12"):
        diagnose(copy.cache, objects=path)
    path.write_text(lines[-1])
    with pytest.raises(UsageError, match="no video of 'train' has a row in"):
        diagnose(copy.cache, objects=path)
    path.unlink()
    with pytest.raises(UsageError, match="name it with --objects"):
        diagnose(copy.cache, objects=path)
    with pytest.raises(UsageError, match="no split 'tset'"):
        diagnose(world.cache, splits=["tset"], objects=world.videos / "objects.jsonl")
