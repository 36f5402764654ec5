"""The rows of annotation and prediction files: JSONL text -> checked `Query` and `Prediction` objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from costl.pipeline.formats.annotations import (
    RATED_CLIP_S,
    Query,
    Window,
    check_field_names,
    number_in,
    numbers_in,
    parse_jsonl,
    parse_rows,
    qid_in,
    table_in,
    text_in,
)

__all__ = ["RATED_CLIP_S", "Prediction", "Query", "Window", "number_in", "parse_jsonl", "parse_predictions", "parse_rows"]
__all__ += ["table_in"]

Moment = tuple[float, float, float]

PREDICTION_FIELDS = ("qid", "query", "vid", "pred_relevant_windows", "pred_saliency_scores")


@dataclass(frozen=True)
class Prediction:
    """The answer of a model to one query: moments (start_s, end_s, score), and one saliency score for each clip.

    Moments are best first by convention. Their order, overlaps and times are not checked here: published submissions break
    these rules and must still be readable. `costl.metrics` refuses what it cannot score. Lists become tuples.
    """

    qid: int | str
    query: str
    vid: str
    windows: tuple[Moment, ...] = ()
    saliency: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        fields = vars(self)
        qid_in(fields)
        text_in(fields, "query")
        text_in(fields, "vid")
        object.__setattr__(self, "windows", table_in(fields, "windows", width=3))
        object.__setattr__(self, "saliency", numbers_in(fields, "saliency"))

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Prediction:
        """The prediction of a row of a QVHighlights submission; an absent list is empty. Raises UsageError."""
        check_field_names(row, fields=PREDICTION_FIELDS)
        return cls(
            qid=qid_in(row),
            query=text_in(row, "query") if "query" in row else "",
            vid=text_in(row, "vid") if "vid" in row else "",
            windows=table_in(row, "pred_relevant_windows", width=3),  # type: ignore[arg-type]
            saliency=numbers_in(row, "pred_saliency_scores"),
        )

    def to_row(self) -> dict[str, Any]:
        """The row of a QVHighlights submission, ready for `json.dumps`."""
        return {
            "qid": self.qid,
            "query": self.query,
            "vid": self.vid,
            "pred_relevant_windows": [list(window) for window in self.windows],
            "pred_saliency_scores": list(self.saliency),
        }


def parse_predictions(text: str, source: str) -> list[Prediction]:
    """The rows of a submission file, in its order. Raises UsageError as `parse_jsonl` does."""
    return parse_rows(text, source, Prediction.from_row)
