"""The state of a swarm as text."""

from __future__ import annotations

from typing import Any

from synthe_cli import figures
from synthe_core.units import format_size


def status_text(values: dict[str, Any]) -> str:
    """What `synthe swarm status` prints."""
    lines = [f"base {values['base']}"]
    if not values["specialists"]:
        return "\n".join([*lines, "no specialists yet: synthe swarm add SWARM NAME --capabilities ... --prompt ..."])
    rows = [
        [each["name"], ", ".join(each["capabilities"]) or "-", _parts(each), _rate(each["success"])]
        for each in values["specialists"]
    ]
    lines += ["", figures.table(["specialist", "capabilities", "made of", "success"], rows, left=3)]
    domains = [
        [each["name"], domain, f"{facts['success']:.0%} ± {facts['deviation']:.0%}", f"{facts['answers']:.0f}"]
        for each in [*values["specialists"], values["fallback"]]
        for domain, facts in each["domains"].items()
    ]
    if domains:
        lines += ["", figures.table(["specialist", "domain", "success", "rated"], domains, left=2)]
    lines += _learning(values)
    if values["answers"]:
        error = values["calibration_error"]
        ece = "" if error is None else f"; confidence is off by {error:.1%} (ECE)"
        lines += ["", f"{values['answers']} answers, {values['rated']} rated{ece}; {format_size(values['bytes'])}"]
    return "\n".join(lines)


def _learning(values: dict[str, Any]) -> list[str]:
    """Who learns now, and which pairs wait to be learned or reviewed."""
    learning, lines = values["learning"], []
    if (now := learning["now"]) is not None:
        total = f" of {now['total']:g}" if now.get("total") else ""
        far = f", {now['doing']}: {now['done']:.3g}{total} {now['unit']}".rstrip() if "doing" in now else ""
        loss = (
            f", loss {now['train']['loss']:.3f} at step {now['train']['step']}"
            if "loss" in now.get("train", {})
            else ""
        )
        lines.append(f"{now.get('specialist', 'somebody')} is learning (pid {now['pid']}){far}{loss}")
    for each in values["specialists"]:
        pairs = each["pairs"]
        if pairs["new"] or pairs["approved"]:
            review = f"{pairs['new']} to review, {pairs['approved']} of {learning['min_pairs']} approved"
            lines.append(f"pairs of {each['name']}: {review}, {pairs['learned']} learned")
    return ["", *lines] if lines else []


def pathways_text(pathways: list[dict[str, Any]]) -> str:
    """What `synthe swarm pathways` prints."""
    if not pathways:
        return "no answer has been rated yet: synthe swarm rate SWARM ANSWER --good"
    rows = [
        [" + ".join(each["members"]), f"{each['weight']:.3f}", str(each["answers"]), f"{each['successes']:g}"]
        for each in pathways
    ]
    return figures.table(["specialists", "strength", "rated", "good"], rows)


def _rate(success: dict[str, float] | None) -> str:
    return "-" if success is None else f"{success['mean']:.0%} ± {success['deviation']:.0%}"


def _parts(specialist: dict[str, Any]) -> str:
    parts = []
    if specialist["unavailable"]:
        parts.append(f"unavailable: {specialist['unavailable']}")
    if specialist["model"]:
        parts.append(f"model {specialist['model']}")
    if specialist["adapter"]:
        parts.append(f"adapter {specialist.get('digest', '')[:12] or specialist['adapter']}")
    if specialist["prompt"]:
        parts.append("prompt")
    if count := len(specialist["documents"]):
        parts.append(f"{count} document{'s' if count > 1 else ''}")
    return ", ".join(parts)
