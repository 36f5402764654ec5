"""Does each promise have a test that fails when it is broken? Breaks them one after the other in a copy of the project.

    python tests/crash/breaking.py            all of them; some minutes
    python tests/crash/breaking.py 1 12       those that keep these promises

A line for each: what was broken, and whether the test saw it. The exit code is 1 when one did not, or when a test fails
with nothing broken.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEFT_OUT = (
    ".git",
    ".venv",
    "venv",
    "build",
    "mutants",
    "runs",
    "shared",
    "__pycache__",
    ".pytest_cache",
    ".mypy_cache",
    ".ruff_cache",
)


@dataclass(frozen=True)
class Break:
    """A promise and one way to break it: in `file`, `old` (which is there once) becomes `new`; `test` must fail."""

    promise: int
    what: str
    file: str
    old: str
    new: str
    test: str


BREAKS = (
    Break(
        1,
        "a part gets its name before it is on the disk",
        "pipeline/cache/hdf5.py",
        "        sync(aside)\n        os.replace(aside, path)\n",
        "        os.replace(aside, path)\n",
        "tests/crash/test_replay.py::test_a_crash_at_any_write_of_an_extraction_loses_nothing_that_was_reported",
    ),
    Break(
        1,
        "the name of a part is not forced to the disk",
        "pipeline/cache/hdf5.py",
        "        os.replace(aside, path)\n        sync(path.parent)\n",
        "        os.replace(aside, path)\n",
        "tests/crash/test_replay.py::test_a_crash_at_any_write_of_an_extraction_loses_nothing_that_was_reported",
    ),
    Break(
        1,
        "an index is written in its place",
        "pipeline/cache/hdf5.py",
        '    aside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")\n',
        "    aside = path\n",
        "tests/crash/test_replay.py::test_a_crash_at_any_write_of_an_extraction_loses_nothing_that_was_reported",
    ),
    Break(
        2,
        "a decode process that dies takes the run with it",
        "pipeline/decode/pool.py",
        '        return Failed(job.video_id, "crashed", ',
        '        raise CostlError(job.video_id, "crashed", ',
        "tests/pipeline/decode/test_pool.py::test_a_video_that_kills_its_process_is_one_crash_and_the_others_finish",
    ),
    Break(
        3,
        "failures in a row never stop a run",
        "pipeline/options.py",
        "FAILURES_IN_A_ROW = 20",
        "FAILURES_IN_A_ROW = 1_000_000",
        "tests/crash/test_failures.py::test_twenty_failures_in_a_row_stop_the_run_with_what_was_finished_kept",
    ),
    Break(
        4,
        "other settings are not noticed",
        "pipeline/cache/writer.py",
        "    differences = explain_difference(read_index(path).contents.fingerprint, fingerprint)\n",
        "    differences = []  # type: ignore[var-annotated]\n",
        "tests/pipeline/cache/test_cache.py::test_other_settings_are_refused_by_field",
    ),
    Break(
        4,
        "the content of a file is not compared",
        "pipeline/cache/writer.py",
        "        if row is None or row.content_hash != content_hash:\n            return None\n",
        "        if row is None:\n            return None\n",
        "tests/pipeline/cache/test_cache.py::test_a_finished_part_is_kept_and_a_replaced_video_is_not",
    ),
    Break(
        5,
        "a cache is not locked",
        "pipeline/cache/lock.py",
        "            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "            pass\n",
        "tests/pipeline/cache/test_cache.py::test_two_writers_at_once_the_second_is_refused",
    ),
    Break(
        5,
        "a run folder is not locked",
        "pipeline/formats/files.py",
        "        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "        pass\n",
        "tests/crash/test_training_faults.py::"
        "test_a_second_training_in_one_folder_is_refused_while_the_first_is_alive_and_hurts_nothing",
    ),
    Break(
        6,
        "the frame after the one on screen is taken",
        "pipeline/decode/video.py",
        'self.grain_s, side="right") - 1\n',
        'self.grain_s, side="right")\n',
        "tests/pipeline/decode/test_video.py::test_a_varying_frame_rate_is_read_by_time_and_not_by_index",
    ),
    Break(
        7,
        "tokens that are no numbers are kept",
        "pipeline/encode/clip.py",
        "_arriving(torch.isfinite(stored).all())",
        "_arriving(torch.isfinite(torch.zeros_like(stored)).all())",
        "tests/pipeline/encode/test_clip.py::test_values_that_do_not_fit_are_refused",
    ),
    Break(
        8,
        "verify remembers what it has read",
        "pipeline/cache/reader.py",
        "        if checksum_of(layers, times_s) != row.checksum:\n",
        '        self.__dict__.setdefault("held", []).append([np.array(layer.read()) for layer in layers])\n'
        "        if checksum_of(layers, times_s) != row.checksum:\n",
        "tests/crash/test_memory.py::test_the_memory_of_verify_does_not_grow_with_the_number_of_videos",
    ),
    Break(
        9,
        "a link in a file is followed",
        "pipeline/cache/hdf5.py",
        "        if not isinstance(link, h5py.HardLink):\n",
        "        if link is None:\n",
        "tests/pipeline/cache/test_cache.py::test_a_link_is_not_followed",
    ),
    Break(
        9,
        "a pickle is opened like any checkpoint",
        "costl/training/checkpoint.py",
        "    _refuse_missing_or_pickled(path)\n",
        "",
        "tests/costl/training/test_checkpoint.py::test_a_pickle_is_never_opened",
    ),
    Break(
        10,
        "the checksum of a part is not compared",
        "pipeline/cache/reader.py",
        "        if checksum_of(layers, times_s) != row.checksum:\n",
        "        if not row.checksum:\n",
        "tests/pipeline/cache/test_cache.py::test_a_flipped_bit_is_found",
    ),
    Break(
        11,
        "resuming forgets the order of the data",
        "costl/training/state.py",
        '        state.shuffle.set_state(meta["shuffle"])\n',
        "",
        "tests/costl/test_train.py::test_k_epochs_and_then_the_rest_are_as_good_as_all_at_once_to_the_last_bit",
    ),
    Break(
        11,
        "threads add up in any order",
        "costl/model/tokens.py",
        "    return x.index_select(0, video)\n",
        "    return x[video]\n",
        "tests/costl/training/test_repeatable.py::test_threads_change_no_bit_of_a_gradient_from_one_time_to_the_next",
    ),
    Break(
        12,
        "a checkpoint gets its name before it is on the disk",
        "pipeline/formats/files.py",
        "                os.fsync(file.fileno())\n",
        "",
        "tests/crash/test_replay.py::"
        "test_a_crash_at_any_write_of_a_training_leaves_whole_checkpoints_and_what_was_reported",
    ),
    Break(
        12,
        "the name of a checkpoint is not forced to the disk",
        "pipeline/formats/files.py",
        "        sync_folder(path.parent)\n",
        "",
        "tests/crash/test_replay.py::"
        "test_a_crash_at_any_write_of_a_training_leaves_whole_checkpoints_and_what_was_reported",
    ),
    Break(
        13,
        "a query without a prediction is passed over",
        "costl/metrics/score_files.py",
        "    if missing:\n",
        "    if False:\n",
        "tests/costl/metrics/test_score_files.py::test_a_query_without_a_row_is_refused_by_name_with_what_to_do",
    ),
    Break(
        14,
        "padding counts in the mean over a video",
        "costl/model/heads.py",
        "        mean = (frames * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)\n",
        "        mean = frames.mean(1)\n",
        "tests/costl/test_evaluate.py::test_the_order_of_queries_and_their_company_change_nothing",
    ),
    Break(
        15,
        "official mode scores by our rules",
        "costl/metrics/compute.py",
        "    rules = how.published if official and how.published else STRICT\n",
        "    rules = STRICT\n",
        "tests/costl/metrics/test_golden.py::test_as_published_the_first_listed_counts_and_two_decimals",
    ),
    Break(
        16,
        "an interruption ends with another code",
        "costl/commands/root.py",
        "            ctx.exit(INTERRUPTED)\n",
        "            ctx.exit(1)\n",
        "tests/crash/test_from_outside.py::test_ctrl_c_ends_an_extraction_with_130_and_the_same_command_goes_on",
    ),
    Break(
        16,
        "errors go to standard output",
        "costl/commands/root.py",
        '            say(f"Error: {error}")\n',
        '            click.echo(f"Error: {error}")\n',
        "tests/crash/test_from_outside.py::test_a_damaged_cache_is_refused_with_3_by_every_command",
    ),
    Break(
        17,
        "settings are read when torch is there",
        "costl/commands/train.py",
        '    load_config(*changes["config"], overrides=changes["overrides"])',
        '    import torch\n\n    load_config(*changes["config"], overrides=changes["overrides"])',
        "tests/crash/test_from_outside.py::"
        "test_every_slip_in_the_settings_is_told_at_once_in_less_than_a_second_and_before_torch_is_loaded",
    ),
    Break(
        18,
        "matplotlib keeps its list in the user's home",
        "costl/plots/headless.py",
        '    if "matplotlib" in sys.modules',
        '    if True or "matplotlib" in sys.modules',
        "tests/crash/test_from_outside.py::"
        "test_from_videos_to_numbers_nobody_is_asked_nothing_else_is_written_and_stdout_is_json",
    ),
    Break(
        18,
        "an extraction asks the network",
        "pipeline/extract.py",
        "from __future__ import annotations\n",
        "from __future__ import annotations\n\nimport contextlib\nimport socket\n\n"
        'with contextlib.suppress(OSError):\n    socket.create_connection(("192.0.2.1", 80), timeout=0.1)\n',
        "tests/crash/test_from_outside.py::"
        "test_from_videos_to_numbers_nobody_is_asked_nothing_else_is_written_and_stdout_is_json",
    ),
)


def main() -> int:
    wanted = set(map(int, sys.argv[1:])) or {one.promise for one in BREAKS}
    chosen = [one for one in BREAKS if one.promise in wanted]
    with tempfile.TemporaryDirectory(prefix="costl-breaking-") as place:
        copy = Path(place) / "costl"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
        tests = sorted({one.test for one in chosen})
        if outcome(copy, *tests) != "passed":
            print("a test fails with nothing broken, or is skipped here: see to that first")
            return 1
        print(f"{len(tests)} tests pass with nothing broken", flush=True)
        unseen = [one for one in chosen if not is_seen(one, copy)]
    print(f"{len(chosen) - len(unseen)} of {len(chosen)} broken promises were seen by their test")
    return int(bool(unseen))


def is_seen(one: Break, copy: Path) -> bool:
    """Breaks it, runs its test, puts it right."""
    path, began = copy / one.file, time.monotonic()
    text = path.read_text(encoding="utf-8")
    assert text.count(one.old) == 1, f"{one.file}: {one.old!r} is there {text.count(one.old)} times"
    path.write_text(text.replace(one.old, one.new), encoding="utf-8")
    try:
        seen = outcome(copy, one.test) == "failed"
    finally:
        path.write_text(text, encoding="utf-8")
    said = "seen" if seen else "NOT SEEN"
    print(
        f"{one.promise:>3}  {said:8}  {one.what}: {one.test.rpartition('::')[2]} ({time.monotonic() - began:.0f} s)",
        flush=True,
    )
    return seen


def outcome(copy: Path, *tests: str) -> str:
    """`passed` when all of them did, `failed`, or `skipped`: then nothing is shown."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-m", "", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):  # no test was run: that shows nothing
        raise SystemExit(f"{' '.join(command)}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    if done.returncode:
        return "failed"
    return "skipped" if " skipped" in done.stdout.splitlines()[-1] else "passed"


if __name__ == "__main__":
    sys.exit(main())
