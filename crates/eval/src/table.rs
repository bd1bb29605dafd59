//! Evaluations side by side, as plain text.

use std::fmt::Write as _;

use crate::bootstrap::Interval;
use crate::summary::{Evaluation, Metric};

/// Sets the metrics of named evaluations side by side, one metric a line, each as `value [low, high]`.
///
/// Rows are those of the first evaluation and, below them, those that only others have.
pub fn table(columns: &[(&str, &Evaluation)]) -> String {
    let mut rows: Vec<&Metric> = Vec::new();
    for metric in columns
        .iter()
        .flat_map(|(_, evaluation)| &evaluation.metrics)
    {
        if !rows.iter().any(|row| row.key == metric.key) {
            rows.push(metric);
        }
    }
    let label_width = rows
        .iter()
        .map(|row| row.label.len())
        .max()
        .unwrap_or(0)
        .max("metric".len());
    let cells: Vec<Vec<String>> = columns
        .iter()
        .map(|(_, evaluation)| {
            rows.iter()
                .map(|row| cell(row, evaluation.metric(&row.key)))
                .collect()
        })
        .collect();
    let widths: Vec<usize> = columns
        .iter()
        .zip(&cells)
        .map(|((name, _), cells)| {
            cells
                .iter()
                .map(String::len)
                .max()
                .unwrap_or(0)
                .max(name.len())
        })
        .collect();
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write!(text, "{:label_width$}", "metric");
    for ((name, _), width) in columns.iter().zip(&widths) {
        let _ = write!(text, "  {name:>width$}");
    }
    text.push('\n');
    for (index, row) in rows.iter().enumerate() {
        let _ = write!(text, "{:label_width$}", row.label);
        for (cells, width) in cells.iter().zip(&widths) {
            let _ = write!(text, "  {:>width$}", cells[index]);
        }
        text.push('\n');
    }
    if let Some((_, first)) = columns.first() {
        let _ = writeln!(
            text,
            "{} {} problems x {} samples, temperature {}; intervals of {} % from {} resamples of the {} split keys",
            first.num_problems,
            first.split.name(),
            first.samples_per_problem,
            first.temperature,
            round(first.confidence * 100.0),
            first.bootstrap_samples,
            first.num_split_keys,
        );
    }
    text
}

fn cell(metric: &Metric, interval: Option<Interval>) -> String {
    let Some(Interval { value, low, high }) = interval else {
        return "-".to_owned();
    };
    if metric.is_share {
        format!(
            "{:.1} % [{:.1}, {:.1}]",
            value * 100.0,
            low * 100.0,
            high * 100.0
        )
    } else {
        format!("{value:.1} [{low:.1}, {high:.1}]")
    }
}

/// Drops what binary fractions add to a percentage.
fn round(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use asyncthink_recipe::EvalSplit;

    fn evaluation(value: f64) -> Evaluation {
        let metric = |key: &str, label: &str, is_share, interval| Metric {
            key: key.into(),
            label: label.into(),
            is_share,
            interval,
        };
        let interval = Some(Interval {
            value,
            low: value / 2.0,
            high: value,
        });
        Evaluation {
            model: "m".into(),
            split: EvalSplit::Validation,
            num_problems: 20,
            num_split_keys: 7,
            samples_per_problem: 2,
            temperature: 1.0,
            confidence: 0.95,
            bootstrap_samples: 1000,
            seed: 1,
            metrics: vec![
                metric("all_correct", "all correct", true, interval),
                metric(
                    "latency_tokens",
                    "latency, tokens",
                    false,
                    (value > 0.3).then_some(interval).flatten(),
                ),
            ],
        }
    }

    #[test]
    fn columns_line_up() {
        let (before, after) = (evaluation(0.125), evaluation(0.5));
        let expected = "\
metric                    before               after
all correct      12.5 % [6.2, 12.5]  50.0 % [25.0, 50.0]
latency, tokens                   -       0.5 [0.2, 0.5]
20 validation problems x 2 samples, temperature 1; intervals of 95 % from 1000 resamples of the 7 split keys
";
        let got = table(&[("before", &before), ("after", &after)]);
        let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(squeeze(&got), squeeze(expected));
        let widths: Vec<usize> = got.lines().take(3).map(str::len).collect();
        assert!(widths.windows(2).all(|pair| pair[0] == pair[1]), "{got}");
    }

    #[test]
    fn json_reads_back() {
        let evaluation = evaluation(0.5);
        let json = serde_json::to_string(&evaluation).unwrap();
        assert_eq!(
            serde_json::from_str::<Evaluation>(&json).unwrap(),
            evaluation
        );
    }
}
