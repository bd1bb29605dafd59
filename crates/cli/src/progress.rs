//! Progress on standard error: a bar on a terminal, plain lines elsewhere.
//! The figures are those of `metrics.jsonl`.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use asyncthink_coldstart::{SynthProgress, SynthStage};
use asyncthink_metrics::Phase;
use asyncthink_trainer::memory::bytes_text;
use asyncthink_trainer::{MemoryReport, Observer, RunStart, StepReport};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Time between plain lines.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

/// Redraws of the bar per second: enough to look alive, too few to cost.
const REDRAWS_PER_SECOND: u8 = 8;

/// Width of the lines of figures under the bar.
const FIGURES_WIDTH: usize = 78;

/// A bar or plain lines, for work that is counted.
pub(crate) struct Progress {
    name: &'static str,
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
    /// The figures of the last step, one line or more.
    figures: String,
}

impl Progress {
    pub(crate) fn new(name: &'static str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let target = ProgressDrawTarget::stderr_with_hz(REDRAWS_PER_SECOND);
            let bar = ProgressBar::with_draw_target(Some(0), target);
            bar.set_style(style());
            bar.set_prefix(name);
            bar
        });
        Self {
            name,
            bar,
            last_line: None,
            figures: String::new(),
        }
    }

    /// Says something above the bar.
    pub(crate) fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            // Nobody is told where standard error is closed.
            None => drop(writeln!(std::io::stderr(), "{text}")),
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn width(&self) -> usize {
        match &self.bar {
            Some(_) => FIGURES_WIDTH,
            None => usize::MAX,
        }
    }

    fn length(&self, total: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
        }
    }

    fn advance(&mut self, done: u64, total: u64, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(what.to_owned());
            return;
        }
        let is_due = self
            .last_line
            .is_none_or(|last| last.elapsed() >= PLAIN_INTERVAL);
        if is_due || done == total {
            self.last_line = Some(Instant::now());
            self.say(&format!("{} {done}/{total} {what}", self.name));
        }
    }

    /// The stage `synth` went on.
    pub(crate) fn synth(&mut self, progress: SynthProgress) {
        let what = match progress.stage {
            SynthStage::Problems => "making problems",
            SynthStage::Solutions => "solving problems",
            SynthStage::Traces => "writing traces",
            SynthStage::Files => "writing files",
        };
        self.advance(progress.done as u64, progress.total as u64, what);
    }

    /// Counted work without figures went on.
    pub(crate) fn count(&mut self, done: u64, total: u64, what: &str) {
        self.advance(done, total, what);
    }
}

impl Observer for Progress {
    fn started(&mut self, start: &RunStart) {
        let origin = match &start.resumed_from {
            Some(dir) => format!(", going on from `{}`", dir.display()),
            None => String::new(),
        };
        let adapters = if start.num_trained == start.num_parameters {
            String::new()
        } else {
            format!(" and {} in adapters", short_count(start.num_trained))
        };
        self.say(&format!(
            "{}: {} steps, {} parameters{adapters}, {} items to train on{origin}",
            self.name,
            start.num_steps,
            short_count(start.num_parameters),
            start.num_items,
        ));
        self.length(start.num_steps);
        if let Some(bar) = &self.bar {
            bar.set_position(start.step);
            // The rest time counts from here, not from step 0.
            bar.reset_eta();
            bar.enable_steady_tick(Duration::from_secs(1));
        }
    }

    fn phase(&mut self, phase: Phase, done: u64, total: u64) {
        let Some(bar) = &self.bar else { return };
        let name = match phase {
            Phase::Rollout => "sampling",
            Phase::Reward => "grading",
            Phase::Reference => "reference",
            Phase::Score => "comparing",
            Phase::Train => "training",
            Phase::Optimizer => "updating",
            Phase::Eval => "evaluating",
            Phase::Save => "saving",
        };
        let phase = if total > 0 {
            format!("{name} {done}/{total}")
        } else {
            name.to_owned()
        };
        bar.set_message(format!("{phase}{}", self.figures));
    }

    fn step(&mut self, report: &StepReport<'_>) {
        let lines = wrap(report.figures, self.width());
        if self.bar.is_some() {
            self.figures = lines.iter().fold(String::new(), |mut text, line| {
                // Writing to a string cannot fail.
                let _ = write!(text, "\n  {line}");
                text
            });
            let figures = self.figures.clone();
            self.advance(report.step, report.num_steps, &figures);
        } else {
            let line = lines.first().map_or("", String::as_str).to_owned();
            self.advance(report.step, report.num_steps, &line);
        }
    }

    fn memory(&mut self, report: &MemoryReport) {
        self.say(&format!(
            "{}: the first step took {} of memory at most, {} were predicted (micro-batches of {} tokens{})",
            self.name,
            bytes_text(report.peak_bytes),
            bytes_text(report.predicted_bytes),
            report.micro_batch_tokens,
            if report.activation_checkpointing {
                ", activation checkpointing"
            } else {
                ""
            },
        ));
    }

    fn saved(&mut self, dir: &Path, step: u64) {
        if self.bar.is_none() {
            self.say(&format!(
                "{} saved step {step} in `{}`",
                self.name,
                dir.display()
            ));
        }
    }

    fn warning(&mut self, message: &str) {
        self.say(&format!("warning: {message}"));
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} [{elapsed} < {eta}] {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

/// Lines of `name value` no wider than `width`.
fn wrap(figures: &[(&'static str, f64)], width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for (name, value) in figures {
        let item = format!("{name} {}", figure(*value));
        match lines.last_mut() {
            Some(line) if line.len() + item.len() + 4 <= width => {
                line.push_str("  ");
                line.push_str(&item);
            }
            _ => lines.push(item),
        }
    }
    lines
}

/// A figure in few characters; `-` where there is none.
pub(crate) fn figure(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() {
        "-".to_owned()
    } else if value == 0.0 {
        "0".to_owned()
    } else if size >= 1000.0 {
        format!("{value:.0}")
    } else if size >= 10.0 {
        format!("{value:.1}")
    } else if size >= 0.001 {
        format!("{value:.3}")
    } else {
        format!("{value:.1e}")
    }
}

/// 1.5 M for 1,500,000.
fn short_count(count: i64) -> String {
    let value = count as f64;
    if value >= 1e9 {
        format!("{:.2} B", value / 1e9)
    } else if value >= 1e6 {
        format!("{:.2} M", value / 1e6)
    } else {
        count.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short_and_wrap() {
        let values = [0.0, 0.123_456, 12.34, 12_345.6, 0.000_012, f64::NAN];
        let texts: Vec<_> = values.into_iter().map(figure).collect();
        assert_eq!(texts, ["0", "0.123", "12.3", "12346", "1.2e-5", "-"]);
        let lines = wrap(&[("loss", 1.0), ("grad_norm", 0.5), ("entropy", 2.0)], 28);
        assert_eq!(lines, ["loss 1.000", "grad_norm 0.500", "entropy 2.000"]);
    }
}
