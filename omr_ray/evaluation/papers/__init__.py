"""The papers' tables and figures on models of one's own: one function each, of stored images and values alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from omr_ray.evaluation.papers import omr, people, roles, switching, tdri
from omr_ray.evaluation.papers.result import DIALOGUES, PROMPTS, SCRATCH, SELECTION, SESSIONS, SWITCHING, Context, Protocol, Result
from omr_ray.types import UserError

EXCITE = "excite"  # one task a threshold


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One table or figure: where it stands, what it shows, which images it needs."""

    source: str
    title: str
    function: Protocol
    tasks: tuple[str, ...] = ()


_OMR, _TDRI = "OMR-Diffusion, {}", "TDRI, {}"
PROTOCOLS: dict[str, Published] = {
    "pictures": Published(source="Contact sheet", title="The models side by side", function=people.pictures, tasks=(DIALOGUES,)),
    "omr-table1": Published(source=_OMR.format("table 1"), title="Comparison of models", function=omr.table1, tasks=(DIALOGUES, SESSIONS)),
    "omr-fig3": Published(source=_OMR.format("figure 3"), title="Reward weights by round", function=omr.weights_by_round),
    "omr-fig5": Published(
        source=_OMR.format("figure 5"), title="Distribution of scores", function=omr.score_distributions, tasks=(DIALOGUES,)
    ),
    "omr-fig6": Published(source=_OMR.format("figure 6"), title="Selection: top 3 of many", function=omr.selection, tasks=(SELECTION,)),
    "omr-fig7": Published(source=_OMR.format("figure 7"), title="Win rates by round", function=omr.win_matrix, tasks=(DIALOGUES,)),
    "omr-table2": Published(
        source=_OMR.format("table 2"), title="Modality switching", function=switching.modality_switching, tasks=(SWITCHING,)
    ),
    "omr-fig8": Published(source=_OMR.format("figure 8"), title="Ablation of rewards", function=roles.ablation, tasks=(DIALOGUES,)),
    "omr-fig9": Published(source=_OMR.format("figure 9"), title="Training size", function=roles.training_size, tasks=(DIALOGUES,)),
    "votes": Published(source="OMR-Diffusion and TDRI, table 1", title="Human votes", function=people.human_votes, tasks=(DIALOGUES,)),
    "tdri-table1": Published(
        source=_TDRI.format("table 1"), title="Agreement with the intent", function=tdri.alignment, tasks=(DIALOGUES,)
    ),
    "tdri-table2": Published(source=_TDRI.format("table 2"), title="Round by round", function=tdri.four_rounds, tasks=(DIALOGUES,)),
    "tdri-table3": Published(
        source=_TDRI.format("table 3"), title="Editing and from scratch", function=tdri.edit_or_scratch, tasks=(SESSIONS, SCRATCH)
    ),
    "tdri-turns": Published(source=_TDRI.format("section 4.3.5"), title="Turns: 2, 4, 6, 8", function=tdri.turns, tasks=(SESSIONS,)),
    "tdri-table4": Published(
        source=_TDRI.format("table 4"), title="Simple and complex prompts", function=tdri.simple_or_complex, tasks=(PROMPTS,)
    ),
    "tdri-table5": Published(
        source=_TDRI.format("table 5"), title="General and per-user D3PO", function=roles.personal, tasks=(DIALOGUES, SESSIONS)
    ),
    "tdri-table6": Published(
        source=_TDRI.format("table 6"), title="Attend-and-Excite thresholds", function=tdri.attend_and_excite, tasks=(EXCITE,)
    ),
    "tdri-table7": Published(
        source=_TDRI.format("table 7"), title="Language model sizes", function=roles.language_sizes, tasks=(DIALOGUES, SESSIONS)
    ),
    "tdri-fig4": Published(source=_TDRI.format("figures 4 and 5"), title="Outputs by user", function=people.user_outputs, tasks=(PROMPTS,)),
    "tdri-fig9": Published(
        source=_TDRI.format("figure 9"), title="Embeddings by round, t-SNE", function=tdri.embedding_by_round, tasks=(DIALOGUES,)
    ),
    "tdri-fig10": Published(source=_TDRI.format("figure 10"), title="Intent by round", function=tdri.intent_by_round, tasks=(SESSIONS,)),
    "tdri-fig11": Published(source=_TDRI.format("figure 11"), title="Rounds used", function=tdri.rounds_distribution, tasks=(SESSIONS,)),
}
ALL = "all"


def chosen(name: str) -> list[str]:
    """The names of protocols that `name` stands for. Raises UserError for one that is not there."""
    if name == ALL:
        return list(PROTOCOLS)
    if name not in PROTOCOLS:
        raise UserError(f"--protocol {name!r} is unknown; choose all, {', '.join(PROTOCOLS)}")
    return [name]


def tasks(names: Sequence[str]) -> list[str]:
    """What has to be painted for these protocols, each once."""
    return list(dict.fromkeys(task for name in names for task in PROTOCOLS[name].tasks))


def outcome(name: str, context: Context) -> Result:
    """One protocol's tables, drawings and gaps."""
    published = PROTOCOLS[name]
    return replace(published.function(context), name=name, source=published.source, title=published.title)
