"""Breaks each promise on purpose in a copy of the project, one after the other, and checks that its test then fails.

    python tests/crash/breaking.py            all promises; some minutes
    python tests/crash/breaking.py 1 12       promises 1 and 12

Prints for each change whether the test detected it. The exit code is 1 if a test did not, or if it fails without a change.
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
    """One way to break a promise: `new` replaces `old`, which `file` contains once; then `test` must fail."""

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
        "pipeline/formats/files.py",
        "        sync(temporary)\n        os.replace(temporary, path)\n",
        "        os.replace(temporary, path)\n",
        "tests/crash/test_replay.py::test_a_crash_at_any_write_of_an_extraction_loses_no_reported_video",
    ),
    Break(
        1,
        "the folder of a part is not forced to the disk",
        "pipeline/formats/files.py",
        "        os.replace(temporary, path)\n        sync(path.parent)\n",
        "        os.replace(temporary, path)\n",
        "tests/crash/test_replay.py::test_a_crash_at_any_write_of_an_extraction_loses_no_reported_video",
    ),
    Break(
        1,
        "an index is written under its final name",
        "pipeline/formats/files.py",
        '    temporary = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"\n',
        "    temporary = path\n",
        "tests/crash/test_replay.py::test_a_crash_at_any_write_of_an_extraction_loses_no_reported_video",
    ),
    Break(
        2,
        "a crashed decode process ends the run",
        "pipeline/decode/pool.py",
        '        return self._failed(worker, "crashed", ',
        '        raise CostlError(worker, "crashed", ',
        "tests/pipeline/decode/test_pool.py::test_a_video_that_kills_its_process_crashes_and_the_others_finish",
    ),
    Break(
        3,
        "failures in a row never stop a run",
        "pipeline/options.py",
        "FAILURES_IN_A_ROW = 20",
        "FAILURES_IN_A_ROW = 1_000_000",
        "tests/crash/test_failures.py::test_twenty_failures_of_the_machine_in_a_row_stop_the_run",
    ),
    Break(
        3,
        "files that are no videos stop a run",
        "pipeline/run/engine.py",
        "        elif status in MACHINE_FAILURES and video_id",
        "        elif video_id",
        "tests/pipeline/test_extract.py::test_files_that_are_no_videos_never_stop_a_run",
    ),
    Break(
        4,
        "different settings are not detected",
        "pipeline/cache/writer.py",
        "    differences = explain_difference(contents.fingerprint, fingerprint)\n",
        "    differences = []  # type: ignore[var-annotated]\n",
        "tests/pipeline/cache/test_cache.py::test_other_settings_are_refused_by_field",
    ),
    Break(
        4,
        "the content of a file is not compared",
        "pipeline/cache/writer.py",
        "        if row is None or row.content_hash != content_hash:\n            return None\n",
        "        if row is None:\n            return None\n",
        "tests/pipeline/cache/test_cache.py::test_a_part_is_reused_unless_its_video_was_replaced",
    ),
    Break(
        5,
        "a cache is not locked",
        "pipeline/cache/lock.py",
        '            stack.enter_context(locked(folder / ".lock", message))\n',
        "            pass\n",
        "tests/pipeline/cache/test_cache.py::test_a_second_writer_is_refused",
    ),
    Break(
        5,
        "a run folder is not locked",
        "pipeline/formats/files.py",
        "            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "            pass\n",
        "tests/crash/test_training_faults.py::"
        "test_a_second_training_in_a_folder_is_refused_and_changes_nothing",
    ),
    Break(
        6,
        "the frame after the one on screen is decoded",
        "pipeline/decode/video.py",
        'self.time_resolution_s, side="right") - 1\n',
        'self.time_resolution_s, side="right")\n',
        "tests/pipeline/decode/test_video.py::test_a_variable_frame_rate_is_read_by_time_not_by_index",
    ),
    Break(
        7,
        "tokens that are not finite are stored",
        "pipeline/encode/clip.py",
        "torch.isfinite(tensor).all()",
        "torch.isfinite(torch.zeros_like(tensor)).all()",
        "tests/pipeline/encode/test_clip.py::test_tokens_that_do_not_fit_into_float16_are_refused",
    ),
    Break(
        8,
        "verify keeps in memory what it has read",
        "pipeline/cache/reader.py",
        "        if tokens.checksum(times_s) != row.checksum:\n",
        '        self.__dict__.setdefault("held", []).append(np.array(tokens.read()))\n'
        "        if tokens.checksum(times_s) != row.checksum:\n",
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
        "a pickle is opened as a checkpoint",
        "costl/training/checkpoint.py",
        "    _refuse_missing_or_pickled(path)\n",
        "",
        "tests/costl/training/test_checkpoint.py::test_a_pickle_is_never_opened",
    ),
    Break(
        10,
        "the checksum of a part is not compared",
        "pipeline/cache/reader.py",
        "        if tokens.checksum(times_s) != row.checksum:\n",
        "        if not row.checksum:\n",
        "tests/pipeline/cache/test_cache.py::test_a_flipped_bit_is_found",
    ),
    Break(
        11,
        "resuming does not restore the order of the data",
        "costl/training/state.py",
        '        state.shuffle_generator.set_state(meta["shuffle"])\n',
        "",
        "tests/costl/test_train.py::test_a_training_resumed_after_some_epochs_ends_with_the_same_bits",
    ),
    Break(
        11,
        "threads add gradients in any order",
        "costl/model/tokens.py",
        "    return x.index_select(0, video)\n",
        "    return x[video]\n",
        "tests/costl/training/test_repeatable.py::test_threads_change_no_bit_of_a_gradient_from_one_time_to_the_next",
    ),
    Break(
        12,
        "a checkpoint gets its name before it is on the disk",
        "pipeline/formats/files.py",
        "        sync(temporary)\n",
        "",
        "tests/crash/test_replay.py::"
        "test_a_crash_at_any_write_of_a_training_leaves_whole_checkpoints",
    ),
    Break(
        12,
        "the folder of a checkpoint is not forced to the disk",
        "pipeline/formats/files.py",
        "        sync(path.parent)\n",
        "",
        "tests/crash/test_replay.py::"
        "test_a_crash_at_any_write_of_a_training_leaves_whole_checkpoints",
    ),
    Break(
        13,
        "a query without a prediction is skipped",
        "costl/metrics/score_files.py",
        "    if missing:\n",
        "    if False:\n",
        "tests/costl/metrics/test_score_files.py::test_a_query_without_a_row_is_refused_by_name",
    ),
    Break(
        14,
        "padding counts in the mean over a video",
        "costl/model/heads.py",
        "        mean = (frames * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)\n",
        "        mean = frames.mean(1)\n",
        "tests/costl/test_evaluate.py::test_predictions_depend_on_neither_order_nor_batch",
    ),
    Break(
        15,
        "official mode scores by the rules of strict mode",
        "costl/metrics/compute.py",
        "    rules = published if official else STRICT\n",
        "    rules = STRICT\n",
        "tests/costl/metrics/test_golden.py::test_official_mode_takes_the_first_listed_and_rounds_to_two_decimals",
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
        '            print_messages(f"Error: {error}")\n',
        '            click.echo(f"Error: {error}")\n',
        "tests/crash/test_from_outside.py::test_a_damaged_cache_is_refused_with_3_by_every_command",
    ),
    Break(
        17,
        "settings are read after torch is loaded",
        "costl/commands/early.py",
        "    load_config(*config, overrides=overrides)",
        "    import torch\n\n    load_config(*config, overrides=overrides)",
        "tests/crash/test_from_outside.py::"
        "test_all_mistakes_in_settings_are_reported_before_torch_is_loaded",
    ),
    Break(
        18,
        "matplotlib stores its font list in the home folder",
        "costl/plots/headless.py",
        '    if "matplotlib" in sys.modules',
        '    if True or "matplotlib" in sys.modules',
        "tests/crash/test_from_outside.py::"
        "test_no_network_no_other_file_and_json_on_stdout_for_six_commands",
    ),
    Break(
        18,
        "an extraction connects to the network",
        "pipeline/extract.py",
        "from __future__ import annotations\n",
        "from __future__ import annotations\n\nimport contextlib\nimport socket\n\n"
        'with contextlib.suppress(OSError):\n    socket.create_connection(("192.0.2.1", 80), timeout=0.1)\n',
        "tests/crash/test_from_outside.py::"
        "test_no_network_no_other_file_and_json_on_stdout_for_six_commands",
    ),
)


def main() -> int:
    promises = set(map(int, sys.argv[1:])) or {one.promise for one in BREAKS}
    chosen = [one for one in BREAKS if one.promise in promises]
    with tempfile.TemporaryDirectory(prefix="costl-breaking-") as folder:
        copy = Path(folder) / "costl"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
        tests = sorted({one.test for one in chosen})
        if run_tests(copy, *tests) != "passed":
            print("a test fails or is skipped without any change: fix this first")
            return 1
        print(f"{len(tests)} tests pass without any change", flush=True)
        undetected = [one for one in chosen if not is_detected(one, copy)]
    print(f"{len(chosen) - len(undetected)} of {len(chosen)} broken promises were detected by their test")
    return int(bool(undetected))


def is_detected(one: Break, copy: Path) -> bool:
    """Makes the change, runs its test, and undoes the change."""
    path = copy / one.file
    began = time.monotonic()
    text = path.read_text(encoding="utf-8")
    assert text.count(one.old) == 1, f"{one.file}: {one.old!r} occurs {text.count(one.old)} times, expected 1"
    path.write_text(text.replace(one.old, one.new), encoding="utf-8")
    try:
        detected = run_tests(copy, one.test) == "failed"
    finally:
        path.write_text(text, encoding="utf-8")
    seconds = time.monotonic() - began
    label = "detected" if detected else "NOT DETECTED"
    print(f"{one.promise:>3}  {label:12}  {one.what}: {one.test.rpartition('::')[2]} ({seconds:.0f} s)", flush=True)
    return detected


def run_tests(copy: Path, *tests: str) -> str:
    """Runs the tests; -> `passed` if all did, `failed`, or `skipped`, which shows nothing."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-m", "", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    if process.returncode not in (0, 1):  # no test was run
        raise SystemExit(f"{' '.join(command)}:\n{process.stdout[-2000:]}{process.stderr[-2000:]}")
    if process.returncode:
        return "failed"
    return "skipped" if " skipped" in process.stdout.splitlines()[-1] else "passed"


if __name__ == "__main__":
    sys.exit(main())
