"""One self-contained HTML page on which a person moves the filter's thresholds and sees what comes and goes."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.mechanism.stage import Artifact
from tasks.text.filter import LANGUAGE_REASON, PII_REASON, RULES, FilterConfig
from tasks.text.inspect.filter import all_features, beginnings

FOREIGN_FEATURE, PII_FEATURE = "foreign_probability", "personal_data"
DIGITS = 4


def render_filter_page(documents: Artifact, filtered: Artifact, cfg: FilterConfig, most_documents: int = 4000) -> str:
    """The page as HTML: no network, no other file.

    Args:
        documents: the artifact that was filtered.
        filtered: the filter's artifact.
        cfg: the config that it was made with.
        most_documents: how many documents the page carries. Half of them are dropped ones where there are so many;
            counts on the page are weighted accordingly.
    """
    features = all_features(documents, filtered)
    dropped = pc.not_equal(features["reason"], "")
    # Half of each kind: at 1 % dropped, a plain sample of 4,000 would show 40 of what the page is about.
    half = most_documents // 2
    parts, weights = [], []
    for group in (features.filter(dropped), features.filter(pc.invert(dropped))):
        part = group.take(pc.sort_indices(group["doc_id"])[: max(half, most_documents - _count(features, dropped))])
        parts.append(part)
        # Each stands for its share of the group, so that the counts on the page are of all documents.
        weights += [len(group) / max(len(part), 1)] * len(part)
    data = _page_data(documents, pa.concat_tables(parts), weights, cfg)
    # A text with `</script>` in it would end the script that holds it.
    embedded = json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("</", "<\\/")
    return _PAGE.replace("/*DATA*/null", embedded)


def _count(features: pa.Table, dropped: pa.ChunkedArray) -> int:
    """The smaller of the two groups: what it does not need, the other may have."""
    number = int(pc.sum(dropped).as_py() or 0)
    return min(number, len(features) - number)


def _page_data(documents: Artifact, rows: pa.Table, weights: Sequence[float], cfg: FilterConfig) -> dict[str, Any]:
    texts = beginnings(documents, rows)
    ids = rows["doc_id"].to_pylist()
    wanted = pc.is_in(rows["language"], pa.array(cfg.languages, pa.string())).to_numpy()
    # -1: a wanted language has no such value
    foreign = np.where(wanted | (not cfg.languages), -1.0, rows["language_probability"].to_numpy())
    columns = {rule.feature: _rounded(rows[rule.feature].to_numpy()) for rule in RULES}
    rules = [
        {"reason": LANGUAGE_REASON, "feature": FOREIGN_FEATURE, "side": "foreign"},
        *({"reason": rule.reason, "feature": rule.feature, "side": rule.side} for rule in RULES),
    ]
    thresholds = {rule["reason"]: float(getattr(cfg, rule["reason"])) for rule in rules}
    columns[FOREIGN_FEATURE] = _rounded(foreign)
    if cfg.pii == "drop":  # whoever has any is dropped: a bound of none that nobody can move
        rules.append({"reason": PII_REASON, "feature": PII_FEATURE, "side": "max"})
        thresholds[PII_REASON] = 0.0
        columns[PII_FEATURE] = _rounded(pc.list_value_length(rows["redactions"]).to_numpy())
    return {
        "rules": rules,
        "fixed": [PII_REASON],
        "thresholds": thresholds,
        "features": columns,
        "weights": [round(weight, DIGITS) for weight in weights],
        "origins": [texts[name][0] for name in ids],
        "excerpts": [" ".join(texts[name][1].split()) for name in ids],
    }


def _rounded(values: Any) -> list[float]:
    return [float(f"{value:.{DIGITS + 2}g}") for value in values.tolist()]


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Filter: what each threshold drops</title>
<style>
:root { color-scheme: light dark; --line: #8884; --kept: #2a7f62; --dropped: #c4473a; --muted: #888; }
body { margin: 0; font: 14px/1.45 system-ui, sans-serif; display: grid; grid-template-columns: 310px 1fr;
  height: 100vh; }
nav { overflow: auto; border-right: 1px solid var(--line); padding: 12px 0; }
nav button { display: flex; justify-content: space-between; gap: 8px; width: 100%; border: 0; padding: 4px 14px;
  background: none; color: inherit; font: inherit; text-align: left; cursor: pointer; }
nav button[aria-current=true] { background: #8883; font-weight: 600; }
nav button.changed span:first-child::after { content: " ●"; color: var(--dropped); }
nav .number { color: var(--muted); font-variant-numeric: tabular-nums; }
main { overflow: auto; padding: 16px 24px; }
h1 { font-size: 20px; margin: 0 0 4px; } h2 { font-size: 16px; margin: 20px 0 6px; }
svg { width: 100%; height: 220px; display: block; }
.controls { display: flex; gap: 12px; align-items: center; margin: 8px 0; }
.controls input[type=range] { flex: 1; } .controls input[type=number] { width: 9em; font: inherit; }
code { background: #8882; padding: 2px 5px; border-radius: 4px; user-select: all; }
.columns { display: grid; grid-template-columns: 1fr 1fr; gap: 24px; }
article { border-top: 1px solid var(--line); padding: 6px 0; overflow-wrap: anywhere; }
article small { color: var(--muted); } .totals b { font-variant-numeric: tabular-nums; }
@media (max-width: 800px) { body { display: block; height: auto; } .columns { display: block; } }
</style></head><body>
<nav aria-label="Rules"></nav>
<main>
<h1 id="title"></h1>
<p class="totals" id="totals"></p>
<svg id="histogram" role="img" aria-label="Distribution of the feature"></svg>
<div class="controls"><label for="slider">threshold</label><input id="slider" type="range" min="0" max="1000">
<input id="number" type="number" step="any" aria-label="threshold"><button id="reset">reset</button></div>
<p id="flags"></p>
<div class="columns"><section><h2 id="gone"></h2><div id="gone-list"></div></section>
<section><h2 id="back"></h2><div id="back-list"></div></section></div>
</main>
<script>
const data = /*DATA*/null;
const count = data.weights.length, original = {...data.thresholds}, current = {...data.thresholds};
let chosen = data.rules[0];
const $ = (id) => document.getElementById(id);
const make = (tag) => document.createElement(tag), f32 = Math.fround;
const fails = (rule, value, threshold) => rule.side === "min" ? f32(value) < f32(threshold)
  : rule.side === "max" ? f32(value) > f32(threshold) : value >= 0 && f32(value) >= f32(threshold);
function verdicts(thresholds) {
  return Array.from({length: count}, (_, i) => {
    for (const rule of data.rules)
      if (fails(rule, data.features[rule.feature][i], thresholds[rule.reason])) return rule.reason;
    return "";
  });
}
const before = verdicts(original);
const weigh = (test) => Math.round(data.weights.reduce((sum, w, i) => sum + (test(i) ? w : 0), 0));
const show = (n) => n.toLocaleString("en");
function range(rule) {
  const values = data.features[rule.feature].filter((v) => v >= 0).sort((a, b) => a - b);
  const top = values.length ? values[Math.floor(0.995 * (values.length - 1))] : 1;
  const threshold = original[rule.reason] < 1e8 ? original[rule.reason] : 0;
  return Math.max(top, threshold * 1.25, 1e-3);
}
function draw() {
  const after = verdicts(current), most = range(chosen), threshold = current[chosen.reason];
  const nav = document.querySelector("nav");
  nav.replaceChildren(...data.rules.map((rule) => {
    const button = make("button"), name = make("span"), n = make("span");
    name.textContent = rule.reason;
    n.className = "number";
    n.textContent = show(weigh((i) => after[i] === rule.reason));
    button.append(name, n);
    button.setAttribute("aria-current", rule === chosen);
    button.classList.toggle("changed", current[rule.reason] !== original[rule.reason]);
    button.onclick = () => { chosen = rule; draw(); };
    return button;
  }));
  $("title").textContent = chosen.reason;
  for (const id of ["slider", "number", "reset"]) $(id).disabled = data.fixed.includes(chosen.reason);
  const kept = weigh((i) => !after[i]), was = weigh((i) => !before[i]);
  $("totals").innerHTML = `kept <b>${show(kept)}</b> of ${show(weigh(() => true))} documents (before: ${show(was)})`;
  histogram(most, threshold);
  $("slider").value = 1000 * Math.min(threshold / most, 1); $("number").value = threshold;
  const changed = data.rules.filter((r) => current[r.reason] !== original[r.reason]);
  $("flags").innerHTML = changed.length ? "to apply: <code>" + changed.map((r) =>
    `--set filter.${r.reason}=${current[r.reason]}`).join(" ") + "</code>" : "";
  list("gone", "Newly dropped", (i) => !before[i] && after[i], after);
  list("back", "Newly kept", (i) => before[i] && !after[i], before);
}
function histogram(most, threshold) {
  const bins = 60, values = data.features[chosen.feature], heights = [new Array(bins).fill(0), new Array(bins).fill(0)];
  for (let i = 0; i < count; i++) {
    if (values[i] < 0) continue;
    const bin = Math.min(bins - 1, Math.floor(bins * values[i] / most));
    heights[fails(chosen, values[i], threshold) ? 1 : 0][bin] += data.weights[i];
  }
  const peak = Math.log1p(Math.max(...heights[0].map((v, b) => v + heights[1][b]), 1)), parts = [];
  for (let b = 0; b < bins; b++) {
    const total = heights[0][b] + heights[1][b];
    if (!total) continue;
    const h = 180 * Math.log1p(total) / peak, red = h * heights[1][b] / total, x = b * 1000 / bins;
    parts.push(`<rect x="${x}" y="${190 - h}" width="${900 / bins}" height="${h - red}" fill="var(--kept)"/>`,
      `<rect x="${x}" y="${190 - red}" width="${900 / bins}" height="${red}" fill="var(--dropped)"/>`);
  }
  const x = 1000 * Math.min(threshold / most, 1);
  parts.push(`<line x1="${x}" x2="${x}" y1="0" y2="190" stroke="currentColor" stroke-width="2"/>`);
  for (let t = 0; t <= 5; t++) parts.push(`<text x="${t * 200}" y="212" fill="currentColor" font-size="13"
    text-anchor="${t === 0 ? "start" : t === 5 ? "end" : "middle"}">${(most * t / 5).toPrecision(3)}</text>`);
  $("histogram").setAttribute("viewBox", "0 0 1000 220");
  $("histogram").setAttribute("preserveAspectRatio", "none");
  $("histogram").innerHTML = parts.join("");
}
function list(id, title, test, reasons) {
  const found = Array.from({length: count}, (_, i) => i).filter(test);
  $(id).textContent = `${title}: ${show(weigh(test))}`;
  $(id + "-list").replaceChildren(...found.slice(0, 40).map((i) => {
    const article = make("article"), head = make("small"), text = make("div");
    const rule = data.rules.find((r) => r.reason === reasons[i]);
    head.textContent = `${reasons[i]}${rule ? " " + data.features[rule.feature][i] : ""} · ${data.origins[i]}`;
    text.textContent = data.excerpts[i];
    article.append(head, text);
    return article;
  }));
}
function move(threshold) { current[chosen.reason] = threshold; draw(); }
$("slider").oninput = (e) => move(Number((range(chosen) * e.target.value / 1000).toPrecision(4)));
$("number").onchange = (e) => move(Number(e.target.value));
$("reset").onclick = () => move(original[chosen.reason]);
draw();
</script></body></html>
"""
