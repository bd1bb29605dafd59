//! Inputs that the files of a finished stage were made from, so that a second call does nothing.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use asyncthink_data::{SynthFolder, write_bytes_atomic};
use fs_err as fs;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::report::SynthReport;
use crate::settings::{ColdstartSettings, TokenizerSource};

/// Raised when the same inputs give other files.
const FORMAT: u32 = 3;

/// `manifest.json`: written last, so that it vouches for the files beside it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// Every input in full; equality means that the files are still right.
    inputs: Value,
    /// Length and digest of every file by its name.
    files: BTreeMap<String, FileMark>,
    /// The report of the run.
    report: SynthReport,
}

/// Enough to notice another or a damaged file; not proof against malice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FileMark {
    num_bytes: u64,
    /// 64-bit FNV-1a in hexadecimal.
    digest: String,
}

/// The inputs of the stage.
pub(crate) fn inputs(settings: &ColdstartSettings) -> Result<Value> {
    let mut files = BTreeMap::new();
    for file in settings.task.input_files() {
        files.insert(file.path.display().to_string(), mark(&file.path)?);
    }
    let model = match &settings.tokenizer {
        TokenizerSource::Task {
            number_tokens,
            max_position_embeddings,
        } => {
            json!({"init": {
                "max_position_embeddings": max_position_embeddings,
                "number_tokens": number_tokens,
            }})
        }
        TokenizerSource::Model(path) => {
            let tokenizer = path.join("tokenizer.json");
            files.insert("tokenizer.json".to_owned(), mark(&tokenizer)?);
            if settings.prompts.chat.is_some() {
                for name in ["chat_template.jinja", "tokenizer_config.json"] {
                    let file = path.join(name);
                    if file.is_file() {
                        files.insert(name.to_owned(), mark(&file)?);
                    }
                }
            }
            json!({"path": path})
        }
    };
    Ok(json!({
        "format": FORMAT,
        "seed": settings.seed,
        "task": {settings.task.task().name(): settings.task.config()},
        "protocol": settings.protocol,
        "prompts": settings.prompts,
        "synth": settings.synth,
        "model": model,
        "files": files,
    }))
}

/// The report of an earlier run, if it had the same inputs and all its files are there unchanged.
pub(crate) fn reusable(folder: &SynthFolder, inputs: &Value) -> Option<SynthReport> {
    let text = fs::read(folder.manifest()).ok()?;
    // A manifest that cannot be read is that of another version or of nobody: the work is done again.
    let manifest: Manifest = serde_json::from_slice(&text).ok()?;
    let is_whole = !manifest.files.is_empty()
        && manifest.files.iter().all(|(name, expected)| {
            mark(&folder.root().join(name)).is_ok_and(|found| found == *expected)
        });
    (manifest.inputs == *inputs && is_whole).then_some(SynthReport {
        is_reused: true,
        ..manifest.report
    })
}

/// Removes the mark of completeness before files are replaced.
pub(crate) fn invalidate(folder: &SynthFolder) -> Result<()> {
    remove_if_there(&folder.manifest())
}

/// Removes a file; one that is not there is no error.
pub(crate) fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Vouches for the files that were just written.
pub(crate) fn write(folder: &SynthFolder, inputs: Value, report: &SynthReport) -> Result<()> {
    let mut files = BTreeMap::new();
    let mut names = vec![
        "train_problems.parquet",
        "test_problems.parquet",
        "pairs.parquet",
        "tokenizer/tokenizer.json",
    ];
    if report.num_validation_problems > 0 {
        names.push("validation_problems.parquet");
    }
    for name in names {
        files.insert(name.to_owned(), mark(&folder.root().join(name))?);
    }
    let manifest = Manifest {
        inputs,
        files,
        report: report.clone(),
    };
    let mut text = serde_json::to_vec_pretty(&manifest)?;
    text.push(b'\n');
    write_bytes_atomic(&folder.manifest(), &text).map_err(Error::from)
}

fn mark(path: &Path) -> Result<FileMark> {
    let mut file = fs::File::open(path)?;
    let mut buffer = vec![0; 1 << 16];
    let (mut num_bytes, mut digest) = (0, 0xcbf2_9ce4_8422_2325_u64);
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(FileMark {
                num_bytes,
                digest: format!("{digest:016x}"),
            });
        }
        num_bytes += count as u64;
        for &byte in &buffer[..count] {
            digest = (digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}
