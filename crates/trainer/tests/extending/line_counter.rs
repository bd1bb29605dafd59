//! A metrics sink: a text file with a line per step.

use std::io::Write as _;

use asyncthink_metrics::{Error, MetricsSink, Result, SinkContext};
use fs_err as fs;
use serde_json::Value;

#[derive(Debug)]
struct LineCounter {
    file: fs::File,
}

pub(super) fn open(context: &SinkContext<'_>) -> Result<Box<dyn MetricsSink>> {
    let path = context.stage_folder.join("lines.txt");
    let file = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)?;
    Ok(Box::new(LineCounter { file }))
}

impl MetricsSink for LineCounter {
    fn write(&mut self, line: &Value) -> Result<()> {
        let step = line["step"].as_u64().ok_or_else(|| Error::Sink {
            sink: "line_counter",
            reason: "a line without a step".to_owned(),
        })?;
        Ok(writeln!(self.file, "step {step}")?)
    }

    fn sync(&mut self) -> Result<()> {
        Ok(self.file.sync_all()?)
    }
}
