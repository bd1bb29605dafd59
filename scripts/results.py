#!/usr/bin/env python3
"""Collects finished runs into `docs/results/`: raw curves as CSV, figures as SVG, and a Markdown table on stdout.

    scripts/results.py runs/seed_1 runs/seed_2 runs/seed_3

Python 3 standard library only. Every number comes from `eval/results.json`, `sft/metrics.jsonl` and
`grpo/metrics.jsonl` of the runs.
"""

import csv
import json
import pathlib
import sys

OUT = pathlib.Path(__file__).resolve().parent.parent / "docs/results"
CURVES = [
    ("all_correct", "all correct"),
    ("reward_accuracy", "mean accuracy"),
    ("eta_ratio", "eta/c"),
    ("latency_tokens", "latency, tokens"),
    ("forks_per_query", "Forks per query"),
    ("format_error_share", "format errors"),
]
COLOURS = ["#3366cc", "#cc5533", "#339955", "#884499"]
SMOOTHING_STEPS = 5
NUM_COLUMNS = 4


def read_lines(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write_curves(name, sft_lines, lines):
    OUT.mkdir(parents=True, exist_ok=True)
    with open(OUT / f"{name}_sft.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", "loss"])
        writer.writerows([line["step"], f"{line['loss']:.5g}"] for line in sft_lines)
    with open(OUT / f"{name}_grpo.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step"] + [key for key, _ in CURVES])
        for line in lines:
            line["format_error_share"] = 1.0 - line["valid"]
            writer.writerow([line["step"]] + [f"{line[key]:.5g}" if line[key] is not None else "" for key, _ in CURVES])


def smoothed(values):
    out = []
    for index in range(len(values)):
        window = [v for v in values[max(0, index - SMOOTHING_STEPS + 1):index + 1] if v is not None]
        out.append(sum(window) / len(window) if window else None)
    return out


def panel(x0, y0, width, height, title, series, last_step):
    values = [v for line in series for v in line if v is not None]
    low, high = min(values + [0.0]), max(values) or 1.0
    longest = max(len(line) for line in series)
    parts = [
        f'<rect x="{x0}" y="{y0}" width="{width}" height="{height}" fill="none" stroke="#999"/>',
        f'<text x="{x0}" y="{y0 - 6}">{title}</text>',
        f'<text x="{x0 - 4}" y="{y0 + 10}" text-anchor="end">{high:.3g}</text>',
        f'<text x="{x0 - 4}" y="{y0 + height}" text-anchor="end">{low:.3g}</text>',
        f'<text x="{x0 + width}" y="{y0 + height + 13}" text-anchor="end">step {last_step}</text>',
    ]
    for number, line in enumerate(series):
        points = " ".join(
            f"{x0 + width * index / max(1, longest - 1):.1f},{y0 + height * (1 - (v - low) / (high - low)):.1f}"
            for index, v in enumerate(line) if v is not None)
        parts.append(f'<polyline fill="none" stroke="{COLOURS[number % len(COLOURS)]}" points="{points}"/>')
    return parts


def write_figure(runs):
    width, height, gap_x, gap_y = 240, 130, 70, 50
    panels = [("SFT loss, nats per token", [[line["loss"] for line in sft] for _, sft, _ in runs], runs[0][1])]
    panels += [(title, [[line[key] for line in grpo] for _, _, grpo in runs], runs[0][2]) for key, title in CURVES]
    parts = []
    for number, (title, series, lines) in enumerate(panels):
        x0, y0 = 50 + (number % NUM_COLUMNS) * (width + gap_x), 30 + (number // NUM_COLUMNS) * (height + gap_y)
        parts += panel(x0, y0, width, height, title, [smoothed(line) for line in series], lines[-1]["step"])
    legend = "".join(
        f'<tspan fill="{COLOURS[n % len(COLOURS)]}" dx="12">{name}</tspan>' for n, (name, _, _) in enumerate(runs))
    total_height = 30 + 2 * (height + gap_y)
    parts.append(f'<text x="40" y="{total_height}">mean of {SMOOTHING_STEPS} lines of metrics; all but the first panel are GRPO, on training problems:{legend}</text>')
    total_width = 50 + NUM_COLUMNS * (width + gap_x)
    svg = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{total_width}" height="{total_height + 12}" '
           f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
           + "".join(parts) + "</svg>\n")
    (OUT / "curves.svg").write_text(svg, encoding="utf-8")


def cell(metric):
    interval = metric["interval"]
    if interval is None:
        return "-"
    scale = 100.0 if metric["is_share"] else 1.0
    value, low, high = (interval[key] * scale for key in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def table(names, results):
    columns = [(name, model) for name, result in zip(names, results) for model in result["models"]]
    print("| metric | " + " | ".join(f"{name}, {model['name']}" for name, model in columns) + " |")
    print("|---|" + "---|" * len(columns))
    for row, metric in enumerate(columns[0][1]["evaluation"]["metrics"]):
        cells = [cell(model["evaluation"]["metrics"][row]) for _, model in columns]
        unit = ", %" if metric["is_share"] else ""
        print(f"| {metric['label'].strip()}{unit} | " + " | ".join(cells) + " |")


def main(folders):
    runs, results = [], []
    for folder in map(pathlib.Path, folders):
        sft_lines, lines = (read_lines(folder / stage / "metrics.jsonl") for stage in ("sft", "grpo"))
        write_curves(folder.name, sft_lines, lines)
        runs.append((folder.name, sft_lines, lines))
        result = json.loads((folder / "eval/results.json").read_text(encoding="utf-8"))
        # Without the paths of the machine that ran it.
        kept = [{"name": model["name"], **{key: value for key, value in model["evaluation"].items() if key != "model"}}
                for model in result["models"]]
        (OUT / f"{folder.name}_eval.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        results.append(result)
    write_figure(runs)
    table([name for name, _, _ in runs], results)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1:])
