"""The pages are right: commands parse, options, settings, names and files exist, and the code runs on a real cache."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from click import Command, Context, Group

from costl.commands import main
from costl.config import Config, load_config
from costl.data.annotations import parse_jsonl
from costl.metrics.corpus_files import read_rankings, read_truth
from costl.pipeline.cache.reader import CacheReader
from costl.pipeline.data_folder import ExtractSettings
from costl.train import train

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
EVERY_PAGE = [*PAGES, ROOT / "CHANGELOG.md"]  # the changelog names commands and settings that are gone


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


each_page = pytest.mark.parametrize("page", PAGES, ids=page_name)


def prose(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def commands(page: Path) -> list[str]:
    """Every command line of CoSTL: on a line of its own, or between backticks, even across a line break."""
    lines = [line.strip().removeprefix("$ ") for line in prose(page).splitlines()]
    spans = [" ".join(span.split()) for span in re.findall(r"`(costl [^`]+)`", prose(page))]
    return [line for line in lines + spans if re.match(r"costl [a-z]+( |$)", line)]


def code(page: Path, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", prose(page), re.MULTILINE | re.DOTALL)


def command_and_arguments(words: list[str]) -> tuple[Command, list[str]]:
    """The command that the words name, inside any number of groups, and the words after its name."""
    command: Command = main
    while isinstance(command, Group) and words:
        name, *words = words
        assert name in command.commands, name
        command = command.commands[name]
    return command, words


def every_command(command: Command) -> Iterator[Command]:
    yield command
    for inner in command.commands.values() if isinstance(command, Group) else ():
        yield from every_command(inner)


@pytest.mark.parametrize(
    ("page", "command"),
    [pytest.param(page, command, id=f"{page_name(page)}: {command}") for page in PAGES for command in commands(page)],
)
def test_every_command_shown_exists_with_its_options_and_values(page, command):
    _, *names = shlex.split(command, comments=True)
    shown, arguments = command_and_arguments(names)
    if not arguments:
        return
    context = shown.make_context(shown.name, arguments, parent=Context(main))
    load_config(overrides=context.params.get("overrides") or ())


@each_page
def test_every_option_mentioned_exists(page):
    known = {option for command in every_command(main) for parameter in command.params for option in parameter.opts}
    # Code blocks also have options of torchrun.
    text = re.sub(r"^```.*?^```$", "", prose(page), flags=re.MULTILINE | re.DOTALL)
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", " ".join(re.findall(r"`([^`]+)`", text))))
    assert mentioned <= known | {"--help", "--version"}


@each_page
def test_every_setting_mentioned_exists(page):
    sections = {field.name: getattr(Config(), field.name) for field in fields(Config)}
    sections = {name: section for name, section in sections.items() if is_dataclass(section)}
    for section, name in re.findall(rf"(?<!costl\.)\b({'|'.join(sections)})\.([a-z_]+[a-z_0-9]*)\b(?!\()", prose(page)):
        assert name in {field.name for field in fields(sections[section])} | {"py", "md", "json", "jsonl", "safetensors"}, (
            f"{section}.{name}"
        )


@each_page
def test_every_python_name_mentioned_exists(page):
    for name in re.findall(r"`(costl(?:\.\w+)+)(?:\([^`]*\))?`", prose(page)):
        if not name.endswith((".py", ".yaml", ".h5")):
            assert python_object(name) is not None, name


def python_object(name: str) -> object:
    """The module or the object in a module with this dotted name."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        parent, _, attribute = name.rpartition(".")
        return getattr(python_object(parent), attribute)


@each_page
def test_every_file_mentioned_exists(page):
    for path in re.findall(r"(?<![\w/])((?:pipeline|costl|configs|tests|tools)/[\w/-]*(?:\.\w+)?)", prose(page)):
        assert (ROOT / path).exists() or Path(path).stem == "NAME", path


@pytest.mark.parametrize("page", EVERY_PAGE, ids=page_name)
def test_links_within_the_project_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", prose(page)):
        linked = page.parent / target if target else page
        assert linked.is_file(), target
        headings = re.findall(r"^#+ (.*)$", prose(linked), re.MULTILINE) if linked.suffix == ".md" else []
        anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in anchors, f"{target}#{anchor}"


@pytest.mark.parametrize("page", EVERY_PAGE, ids=page_name)
def test_every_row_of_a_table_has_as_many_cells_as_its_header(page):
    cells = None
    for number, line in enumerate(prose(page).splitlines(), start=1):
        is_row = line.lstrip().startswith("|")
        if is_row and cells is not None:
            assert len(re.findall(r"(?<!\\)\|", line)) == cells, f"{page.name}:{number}"
        cells = (cells or len(re.findall(r"(?<!\\)\|", line))) if is_row else None


def test_the_index_links_to_every_page():
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", prose(ROOT / "docs" / "README.md")))
    assert linked == {page.name for page in DOCS} - {"README.md"}


def test_the_corpus_files_shown_are_read(tmp_path):
    truth, rankings = code(ROOT / "docs" / "evaluation.md", "jsonl")
    path = tmp_path / "shown.jsonl"
    path.write_text(truth, encoding="utf-8")
    shown, absent = read_truth(path)
    assert shown.moments and not absent.moments and absent.absent
    path.write_text(rankings, encoding="utf-8")
    assert len(read_rankings(path)[shown.sentence]) == 2


@each_page
def test_annotations_shown_are_read(page):
    for row in code(page, "json"):
        assert parse_jsonl(row, page.name)[0].windows


@each_page
def test_settings_shown_are_read(page):
    for block in code(page, "yaml"):
        settings = yaml.safe_load(block)
        ExtractSettings(**settings["extract"])
        load_config(settings["train"])


@pytest.mark.parametrize("page", ["python-api.md", "what-the-model-sees.md"])
def test_the_code_on_a_page_runs_on_a_trained_run(page, world, tmp_path, monkeypatch):
    train(world.cache, overrides=["train.epochs=1"], out=tmp_path / "runs" / "mine", device="cpu")
    shutil.copy(world.videos / "test_0000.mp4", tmp_path / "holiday.mp4")
    for name in ("dir", "Videos"):
        (tmp_path / name).symlink_to(world.videos, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    blocks = code(ROOT / "docs" / page, "python")
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), {})


def test_the_code_on_the_cache_page_reads_a_cache(world, monkeypatch):
    (block,) = code(ROOT / "docs" / "cache-format.md", "python")
    monkeypatch.chdir(world.cache.parent)
    variables: dict = {}
    exec(compile(block, "cache-format.md", "exec"), variables)
    reader = CacheReader("feats.h5")
    expected = {
        "fps": reader.fps,
        "patch_grid": list(reader.patch_grid),
        "videos": reader.contents.videos,
        "source": reader.contents.source,
        **asdict(reader.contents.token_format),
    }
    assert {name: variables["features"][name] for name in expected} == expected
    assert variables["annotations"] == {split: reader.annotations(split) for split in reader.splits}
    assert set(variables["tokens"]) == set(reader.video_ids)
    for name in reader.video_ids:
        np.testing.assert_array_equal(variables["tokens"][name], reader.tokens(name))
        np.testing.assert_array_equal(variables["times_s"][name], reader.times_s(name))
    for query, tokens in variables["word_tokens"].items():
        np.testing.assert_array_equal(tokens, reader.words(query).tokens)
    query = parse_jsonl(reader.annotations("test"), "test")[0]
    expected = reader.joint_vectors(query.vid) @ reader.words(query.query).sentence
    np.testing.assert_allclose(variables["similarity"](query.vid, query.query), expected, rtol=1e-4, atol=1e-5)


def test_the_cache_page_names_every_dataset_and_attribute(world):
    import h5py

    page = prose(ROOT / "docs" / "cache-format.md")
    missing = []
    parts = world.cache.parent / "feats.h5.parts"
    sections = dict(re.findall(r"^## (The index|A part|The words)\n(.*?)(?=^## )", page, re.MULTILINE | re.DOTALL))
    files = {"The index": world.cache, "A part": min(parts.glob("*.h5")), "The words": min(parts.glob("words/*.h5"))}
    for title, path in files.items():
        with h5py.File(path) as file:
            names = list(file.attrs)
            file.visititems(
                lambda name, node, names=names: names.append(name) if isinstance(node, h5py.Dataset) else None
            )
            names = ["annotations/SPLIT" if name.startswith("annotations/") else name for name in names]
            missing += [name for name in names if f"`{name}`" not in sections[title]]
            for name in names:
                if name in file and file[name].dtype.kind != "S":
                    (row,) = [
                        line
                        for line in sections[title].splitlines()
                        if line.startswith("| ") and f"`{name}`" in line.split("|")[1]
                    ]
                    assert str(file[name].dtype) == row.split("|")[2].strip(), name
                    assert len(re.search(r"\[(.*?)\]", row.split("|")[3])[1].split()) == file[name].ndim, name
    assert not missing
    rows = CacheReader(world.cache).rows
    assert not [field.name for field in fields(rows[0]) if f"`{field.name}`" not in page]
