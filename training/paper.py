"""The figures that the paper prints (AUC), to stand beside ours; their data are private, or other than ours."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PaperTable:
    """One printed table: AUC by model and task, in the paper's task names."""

    name: str
    data: str
    tasks: tuple[str, ...]
    aucs: dict[str, tuple[float, ...]]


PAPER_TABLES = {
    "table-1": PaperTable(
        "Table 1",
        "a private feed of Tencent, 1 billion rows",
        ("click", "like", "follow", "push", "comment"),
        {
            "MMOE": (0.7516, 0.8937, 0.9512, 0.8679, 0.8919),
            "PLE": (0.7525, 0.8952, 0.9514, 0.8721, 0.8956),
            "DLEN": (0.7532, 0.8971, 0.9519, 0.8747, 0.8948),
        },
    ),
    "table-3": PaperTable(
        "Table 3",
        "Ali-CCP (CTR is click, CVR is buy_given_click)",
        ("CTR", "CVR"),
        {
            "MMOE": (0.6231, 0.6160),
            "MMOE-DLEN": (0.6245, 0.6282),
            "PLE": (0.6241, 0.6183),
            "PLE-DLEN": (0.6243, 0.6243),
        },
    ),
}
