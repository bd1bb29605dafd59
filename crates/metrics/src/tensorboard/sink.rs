//! The files of a stage: one for every start of it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use fs_err as fs;
use serde_json::Value;

use super::{event, record};
use crate::error::{Error, Result};
use crate::sink::{MetricsSink, SinkContext};

/// Folder below that of the stage.
const FOLDER: &str = "tensorboard";

/// Beginning of the files' names, which TensorBoard looks for.
const PREFIX: &str = "events.out.tfevents.";

/// Opens the sink.
///
/// Steps after the checkpoint that the run resumes from are cut off the files of earlier starts, and the new file begins at
/// the step after it: no step is there twice.
///
/// # Errors
/// When a file cannot be read, cut or made.
pub(crate) fn open(context: &SinkContext<'_>) -> Result<Box<dyn MetricsSink>> {
    let folder = context.stage_folder.join(FOLDER);
    fs::create_dir_all(&folder)?;
    let earlier = event_files(&folder)?;
    for path in &earlier {
        cut(path, context.resumed_step)?;
    }
    let now = wall_time();
    // TensorBoard reads files in the order of their names.
    let name = format!("{PREFIX}{now:010.0}.{:04}.asyncthink", earlier.len());
    let mut sink = TensorBoard {
        file: fs::OpenOptions::new()
            .create_new(true)
            .write(true)
            .open(folder.join(name))?,
    };
    sink.append(&event::file_version(now))?;
    if context.resumed_step > 0 {
        sink.append(&event::session_start(now, context.resumed_step + 1))?;
    }
    Ok(Box::new(sink))
}

/// An event file of scalars.
#[derive(Debug)]
struct TensorBoard {
    file: fs::File,
}

impl TensorBoard {
    fn append(&mut self, event: &[u8]) -> Result<()> {
        Ok(self.file.write_all(&record::frame(event))?)
    }
}

impl MetricsSink for TensorBoard {
    fn write(&mut self, line: &Value) -> Result<()> {
        let step = line["step"].as_u64().ok_or_else(|| Error::Sink {
            sink: FOLDER,
            reason: "a line without `step`".to_owned(),
        })?;
        let mut values = Vec::new();
        collect(line, "", &mut values);
        values.retain(|(tag, _)| tag != "step");
        self.append(&event::scalars(wall_time(), step, &values))
    }

    fn sync(&mut self) -> Result<()> {
        Ok(self.file.sync_all()?)
    }
}

/// The numbers of a line; keys of inner objects follow those of the outer ones behind a slash.
fn collect(value: &Value, tag: &str, values: &mut Vec<(String, f32)>) {
    match value {
        Value::Object(entries) => {
            for (key, value) in entries {
                let tag = if tag.is_empty() {
                    key.clone()
                } else {
                    format!("{tag}/{key}")
                };
                collect(value, &tag, values);
            }
        }
        Value::Number(number) => {
            #[expect(clippy::cast_possible_truncation, reason = "event files hold f32")]
            values.extend(
                number
                    .as_f64()
                    .map(|number| (tag.to_owned(), number as f32)),
            );
        }
        _ => {}
    }
}

fn wall_time() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}

/// Event files in a folder, by name.
fn event_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

/// Cuts a file behind its last whole event of step `step` or an earlier one.
fn cut(path: &Path, step: u64) -> Result<()> {
    let bytes = fs::read(path)?;
    let mut keep = 0;
    while let Some((content, size)) = record::first(&bytes[keep..])
        && event::step_of(content).is_some_and(|of_event| of_event <= step)
    {
        keep += size;
    }
    if keep < bytes.len() {
        let file = fs::OpenOptions::new().write(true).open(path)?;
        file.set_len(keep as u64)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Steps of all events with scalars, in the order in which TensorBoard reads them.
    fn steps(stage: &Path) -> Vec<u64> {
        let mut steps = Vec::new();
        for path in event_files(&stage.join(FOLDER)).unwrap() {
            let bytes = fs::read(path).unwrap();
            let mut rest = bytes.as_slice();
            while let Some((content, size)) = record::first(rest) {
                if content.windows(4).any(|part| part == b"loss") {
                    steps.push(event::step_of(content).unwrap());
                }
                rest = &rest[size..];
            }
            assert!(rest.is_empty());
        }
        steps
    }

    fn write(stage: &Path, resumed_step: u64, steps: std::ops::RangeInclusive<u64>) {
        let context = SinkContext {
            stage_folder: stage,
            resumed_step,
        };
        let mut sink = open(&context).unwrap();
        for step in steps {
            sink.write(&json!({"step": step, "loss": 0.5})).unwrap();
        }
        sink.sync().unwrap();
    }

    #[test]
    fn a_resumed_run_has_every_step_once() {
        let stage = tempfile::tempdir().unwrap();
        let stage = stage.path();
        write(stage, 0, 1..=5);
        write(stage, 3, 4..=6);
        assert_eq!(steps(stage), [1, 2, 3, 4, 5, 6]);
        // Killed in the middle of a record.
        let last = event_files(&stage.join(FOLDER)).unwrap().pop().unwrap();
        let bytes = fs::read(&last).unwrap();
        fs::write(&last, &bytes[..bytes.len() - 3]).unwrap();
        write(stage, 5, 6..=7);
        assert_eq!(steps(stage), [1, 2, 3, 4, 5, 6, 7]);
        write(stage, 0, 1..=1);
        assert_eq!(steps(stage), [1]);
    }

    #[test]
    fn numbers_of_a_line_become_scalars() {
        let line = json!({"step": 3, "loss": 0.5, "kl": null, "ok": true, "timing": {"phase_seconds": {"train": 2}}});
        let mut values = Vec::new();
        collect(&line, "", &mut values);
        let expected = [
            ("step", 3.0),
            ("loss", 0.5),
            ("timing/phase_seconds/train", 2.0),
        ];
        let expected = expected.map(|(tag, value)| (tag.to_owned(), value));
        values.sort_by(|a, b| a.0.cmp(&b.0));
        let mut sorted = expected.to_vec();
        sorted.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(values, sorted);
    }

    #[test]
    fn bytes_are_those_of_tensorboard() {
        let golden = include_bytes!("../../tests/golden/events.out.tfevents.golden");
        let values = [
            ("loss".to_owned(), 0.5),
            ("timing/step_seconds".to_owned(), 1e-3),
        ];
        let events = [
            event::file_version(1.5),
            event::session_start(2.5, 300),
            event::scalars(3.25, 300, &values),
        ];
        let ours: Vec<u8> = events
            .iter()
            .flat_map(|event| record::frame(event))
            .collect();
        assert_eq!(ours, golden);
    }
}
