//! `metrics.jsonl`: one line per step.
//!
//! Metrics that the run's inputs determine stand at the top level of a line; everything measured with a clock stands in
//! its `timing` object. Lines without `timing` of a resumed run equal those of an unbroken one, byte for byte.

use std::io::{Read as _, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::Serialize;

use crate::error::{Error, Result};

/// Longest line that [`MetricsLog::last_line`] finds; lines have about one kilobyte.
const MAX_LINE_BYTES: u64 = 1 << 16;

/// The metrics file of one stage, open for appending.
#[derive(Debug)]
pub struct MetricsLog {
    file: fs::File,
    path: PathBuf,
    offset_bytes: u64,
    missing_bytes: u64,
}

impl MetricsLog {
    /// Opens the file and cuts it to the first `keep_bytes`, which a checkpoint recorded; 0 starts anew.
    ///
    /// A file that is shorter than that is kept as it is; [`MetricsLog::missing_bytes`] tells.
    ///
    /// # Errors
    /// When the file cannot be opened or cut.
    pub fn open(path: &Path, keep_bytes: u64) -> Result<Self> {
        let mut file = fs::OpenOptions::new()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .open(path)?;
        let offset_bytes = file.metadata()?.len().min(keep_bytes);
        file.set_len(offset_bytes)?;
        file.seek(SeekFrom::Start(offset_bytes))?;
        if let Some(folder) = path.parent() {
            // A checkpoint records the file's length: its name must be on the disk as well.
            fs::File::open(folder)?.sync_all()?;
        }
        Ok(Self {
            file,
            path: path.to_owned(),
            offset_bytes,
            missing_bytes: keep_bytes - offset_bytes,
        })
    }

    /// How many of the bytes that the checkpoint recorded the file had lost when it was opened.
    pub fn missing_bytes(&self) -> u64 {
        self.missing_bytes
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends one line.
    ///
    /// # Errors
    /// When the line cannot be written.
    pub fn append(&mut self, line: &impl Serialize) -> Result<()> {
        let mut bytes = serde_json::to_vec(line).map_err(|source| Error::Json {
            path: self.path.clone(),
            source,
        })?;
        bytes.push(b'\n');
        self.file.write_all(&bytes)?;
        self.offset_bytes += bytes.len() as u64;
        Ok(())
    }

    /// The newest line, if there is one that can be read.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn last_line(&self) -> Result<Option<serde_json::Value>> {
        let start = self.offset_bytes.saturating_sub(MAX_LINE_BYTES);
        let mut file = fs::File::open(&self.path)?;
        file.seek(SeekFrom::Start(start))?;
        let mut tail = Vec::new();
        file.take(self.offset_bytes - start)
            .read_to_end(&mut tail)?;
        let line = tail.trim_ascii_end().rsplit(|&byte| byte == b'\n').next();
        Ok(line.and_then(|line| serde_json::from_slice(line).ok()))
    }

    /// Puts everything on the disk and returns the length, for a checkpoint to record.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn sync(&mut self) -> Result<u64> {
        self.file.sync_all()?;
        Ok(self.offset_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reopening_cuts_what_the_checkpoint_did_not_see() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut log = MetricsLog::open(&path, 0).unwrap();
        assert_eq!(log.last_line().unwrap(), None);
        log.append(&serde_json::json!({"step": 1})).unwrap();
        let offset = log.sync().unwrap();
        log.append(&serde_json::json!({"step": 2})).unwrap();
        assert_eq!(log.last_line().unwrap().unwrap()["step"], 2);
        drop(log);
        let mut log = MetricsLog::open(&path, offset).unwrap();
        assert_eq!(log.last_line().unwrap().unwrap()["step"], 1);
        log.append(&serde_json::json!({"step": 3})).unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "{\"step\":1}\n{\"step\":3}\n"
        );
        assert_eq!(log.missing_bytes(), 0);
        drop(log);
        let longer = MetricsLog::open(&path, 100).unwrap();
        assert_eq!(longer.missing_bytes(), 78);
        drop(longer);
        MetricsLog::open(&path, 0).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
    }

    #[test]
    fn numbers_are_written_so_that_they_read_back_equal() {
        let value = 0.1_f64 + 0.2;
        let text = serde_json::to_string(&value).unwrap();
        assert_eq!(
            serde_json::from_str::<f64>(&text).unwrap().to_bits(),
            value.to_bits()
        );
    }
}
