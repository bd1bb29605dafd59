//! Each training stage once, as a process of its own: what ends a process does not end the check.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use tch::Device;

use super::check::Check;

const RECIPE: &str = include_str!("tiny.toml");

type Error = Box<dyn std::error::Error>;

/// Trains a tiny model through all stages on a device.
pub(super) fn checks(device: Device) -> Vec<Check> {
    let dir = match tempfile::tempdir() {
        Ok(dir) => dir,
        Err(error) => return vec![Check::new("stages", Err(error.to_string()))],
    };
    let device = match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".to_owned(),
    };
    let mut checks = Vec::new();
    for (stage, look) in STAGES {
        let outcome = run(dir.path(), stage, &device).and_then(|()| look(dir.path()));
        let is_over = outcome.is_err();
        let outcome = outcome.map_err(|error| error.to_string());
        checks.push(Check::new(format!("stage {stage}"), outcome));
        if is_over {
            break;
        }
    }
    checks
}

/// A stage, and what is looked for in its run folder.
type Stage = (&'static str, fn(&Path) -> Result<String, Error>);

const STAGES: [Stage; 4] = [
    ("synth", |_| Ok("traces written".to_owned())),
    ("sft", |dir| {
        let lines = metrics(&dir.join("run/sft/metrics.jsonl"))?;
        let loss = |line: Option<&Value>| line.and_then(|line| line["loss"].as_f64());
        match (loss(lines.first()), loss(lines.last())) {
            (Some(first), Some(last)) if last < first => {
                Ok(format!("loss {first:.3} to {last:.3} in 10 steps"))
            }
            (first, last) => Err(format!("loss {first:?} to {last:?} in 10 steps").into()),
        }
    }),
    ("grpo", |dir| {
        let lines = metrics(&dir.join("run/grpo/metrics.jsonl"))?;
        let mismatches = lines
            .iter()
            .map(|line| line["logprob_mismatch_max_nats"].as_f64());
        let mismatches: Option<Vec<f64>> = mismatches.collect();
        let largest = mismatches.ok_or("no mismatch was measured")?;
        let largest = largest.into_iter().fold(0.0, f64::max);
        let found = format!("sampler and trainer differ by {largest:.1e} nats at most");
        // Sampler and trainer compute in f32 here, on any device.
        if largest < 1e-3 {
            Ok(found)
        } else {
            Err(found.into())
        }
    }),
    ("eval", |_| Ok("20 problems answered".to_owned())),
];

fn run(dir: &Path, stage: &str, device: &str) -> Result<(), Error> {
    let recipe = dir.join("tiny.toml");
    fs_err::write(&recipe, RECIPE)?;
    let output = Command::new(std::env::current_exe()?)
        .arg(stage)
        .arg(&recipe)
        .args(["--set", &format!("device={device}")])
        .args(["--set", &format!("run_dir={}", dir.join("run").display())])
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let error = text.lines().find(|line| line.starts_with("error:"));
    let error = error.unwrap_or("no error was printed");
    Err(format!("{}: {error}", output.status).into())
}

fn metrics(path: &Path) -> Result<Vec<Value>, Error> {
    let text = fs_err::read_to_string(path)?;
    let lines = text.lines().map(serde_json::from_str);
    Ok(lines.collect::<Result<Vec<Value>, _>>()?)
}
