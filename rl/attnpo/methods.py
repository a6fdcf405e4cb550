"""The methods: one name sets what is rewarded, how it becomes an advantage, and what rescales it.

A method is a row of settings of `AttnPOConfig`; any of them can be overridden singly. An own one
is entered by its name, `METHODS["mine"] = Method("what it does", signal="recency")`; `method: mine`
then chooses it.
"""

from __future__ import annotations

from dataclasses import dataclass

from probing.errors import ConfigError
from probing.settings import unknown

ADVANTAGES = ("rloo", "grpo", "batch")
NEED_TARGET = ("laser", "dler")  # length penalties with a target length


@dataclass(frozen=True)
class Method:
    """What a method's name stands for.

    Args:
        about: one line for people.
        length_penalty: one of `rl.attnpo.rewards.PENALTIES`.
        advantage: `rloo`: A = r − mean of the others (AttnPO section 3); `grpo`: (r − mean) / std
            of the group; `batch`: (r − mean of the group) / std of the batch.
        signal: where step scores come from, one of `rl.attnpo.signals.signal_names()`; `none`:
            an outcome-level method.
        positive, negative: PA and NA, see `rl.attnpo.rescale`.
        difficulty: whether p lowers the baseline and the attenuation (α and β; 0 where not).
        schedule: whether hard problems start later (T_0; 0 where not).
        form: of PA's scale, see `rl.attnpo.rescale.positive_scale`.
        outside: what the answer's tokens get, see `rl.attnpo.rescale.outside_scale`.
    """

    about: str
    length_penalty: str = "tlmre"
    advantage: str = "rloo"
    signal: str = "none"
    positive: bool = True
    negative: bool = True
    difficulty: bool = True
    schedule: bool = True
    form: str = "release"
    outside: str = "whole"


METHODS = {
    "grpo": Method("accuracy alone, advantage over the group's deviation", "none", "grpo"),
    "rloo": Method("accuracy alone, leave-one-out advantage", "none"),
    "tlmre": Method("length penalty over the group's correct responses"),
    "laser": Method("bonus for correct responses within a target length", "laser"),
    "dler": Method("correct responses count within a target length only", "dler", "batch"),
    "attnpo": Method("TLMRE, rescaled by step by the head set", signal="heads"),
    "pa": Method("AttnPO without negative-advantage attenuation", signal="heads", negative=False),
    "na": Method("AttnPO without positive-advantage attenuation", signal="heads", positive=False),
    "no-difficulty": Method("AttnPO with p = 1 in its formulas", signal="heads", difficulty=False),
    "no-schedule": Method("AttnPO from the first step on", signal="heads", schedule=False),
    "random-heads": Method("AttnPO with as many heads drawn at random", signal="random-heads"),
    "all-heads": Method("AttnPO with the mean of all heads", signal="all-heads"),
    "attnpo-hard": Method("AttnPO, steps below the baseline get δ", signal="heads", form="hard"),
    "attnpo-checks": Method("the same, sparing checks of doubt", signal="checks", form="hard"),
    "attnpo-answer": Method("AttnPO, γ̄ for the answer, too", signal="heads", outside="mean"),
    "recency": Method("AttnPO with recency instead of attention", signal="recency"),
    "overlap": Method("AttnPO with the answer's words instead of attention", signal="overlap"),
    "oracle": Method("AttnPO with the true labels: the ceiling", signal="labels"),
}

# What a model card cites, by method; "attnpo" (README.md has it too) by all that score steps.
PAPERS = {
    "attnpo": {
        "title": "AttnPO: Attention-Guided Process Supervision for Efficient Reasoning",
        "id": "2602.09953",
        "citation": """\
@inproceedings{nie-etal-2026-attnpo,
  title     = {{AttnPO}: Attention-Guided Process Supervision for Efficient Reasoning},
  author    = {Nie, Shuaiyi and Ding, Siyu and Zhang, Wenyuan and Yu, Linhao and Yang, Tianmeng and
               Chen, Yao and Yin, Weichong and Sun, Yu and Wu, Hua and Liu, Tingwen},
  booktitle = {Proceedings of the 64th Annual Meeting of the Association for Computational Linguistics},
  year      = {2026},
  pages     = {39728--39748},
  url       = {https://aclanthology.org/2026.acl-long.1845/},
}""",  # noqa: E501
    },
    "rloo": {
        "title": "Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human "
        "Feedback in LLMs",
        "id": "2402.14740",
    },
    "tlmre": {"title": "Training Language Models to Reason Efficiently", "id": "2502.04463"},
    "laser": {
        "title": "Learn to Reason Efficiently with Adaptive Length-based Reward Shaping",
        "id": "2505.15612",
    },
    "dler": {
        "title": "DLER: Doing Length pEnalty Right - Incentivizing More Intelligence per Token via "
        "Reinforcement Learning",
        "id": "2510.15110",
    },
}


def method_of(name: str) -> Method:
    """The method of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in METHODS:
        raise ConfigError(unknown("method", name, METHODS))
    return METHODS[name]


def card(
    method: str, rescales: bool, stock: dict[str, str]
) -> tuple[str, list[str], dict[str, str]]:
    """What the card of a trained model says of its method: its name, tags, and what is cited.

    Args:
        method: its name.
        rescales: whether steps get scales of their own.
        stock: what TRL cites, which is GRPO's paper.

    Example:
        >>> name, tags, paper = card("na", True, {})
        >>> name, tags[1], paper["id"]
        ('AttnPO (na)', 'attnpo', '2602.09953')
    """
    if rescales:
        name = "AttnPO" if method == "attnpo" else f"AttnPO ({method})"
        return name, ["trl", "attnpo"], PAPERS["attnpo"]
    return method.upper(), ["trl", method], stock if method == "grpo" else PAPERS.get(method, {})


def pressure_key(method: str) -> str:
    """The setting that holds a method's pressure.

    Raises:
        ConfigError: an unknown method, or one without.

    Example:
        >>> pressure_key("attnpo"), pressure_key("dler")
        ('length_coef', 'target_length')
    """
    penalty = method_of(method).length_penalty
    if penalty == "none":
        raise ConfigError(f"{method} has no length penalty, so no pressure to choose")
    return "target_length" if penalty in NEED_TARGET else "length_coef"
