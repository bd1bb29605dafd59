//! The command `score`: how likely are these tokens to a model?

use std::io::{IsTerminal as _, Write};
use std::time::{Duration, Instant};

use asyncthink_data::TokenId;
use asyncthink_gradient::score_sequences;
use asyncthink_model::{Decoder, ModelFolder, Parallelism, check_folder};
use asyncthink_torch::{keep_freed_memory, open_device, peak_bytes, set_num_threads};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tch::{Device, Kind};

use crate::args::{DtypeArg, ScoreArgs};
use crate::failure::Failure;
use crate::lines::{self, Id, LineReader, Unreadable};
use crate::preflight;
use crate::progress::Progress;

/// Batches that are read ahead, so that sequences of unlike lengths fill them.
/// More would only delay the first answers.
const WINDOW_BATCHES: usize = 8;

const MODEL_HINT: &str =
    "give the folder of a Hugging Face model: `config.json` and `model.safetensors` or its shards";

/// A line of the input.
#[derive(Deserialize)]
struct IdsLine {
    #[serde(default)]
    id: Id,
    input_ids: Vec<i64>,
}

/// A line of the output.
#[derive(Serialize)]
struct ScoreLine {
    id: Id,
    logprobs: Vec<f32>,
}

pub(crate) fn run(args: &ScoreArgs, out: &mut dyn Write) -> Result<(), Failure> {
    // What can be wrong without the weights is found before they are read.
    let limits = Limits::of(args)?;
    let mut reader = LineReader::open(&args.file)?;
    let started = Instant::now();
    let decoder = load(args)?;
    let parallelism = Parallelism::for_decoder(&decoder);
    parallelism.apply();
    let mut report = Report {
        load_seconds: started.elapsed().as_secs_f64(),
        load_peak_bytes: peak_bytes(Device::Cpu),
        ..Report::default()
    };
    let batch_tokens = args.batch_tokens as usize;
    let window_tokens = batch_tokens.saturating_mul(WINDOW_BATCHES);
    let mut progress = std::io::stderr()
        .is_terminal()
        .then(|| Progress::new("score"));
    let mut num_unreadable = 0;
    loop {
        let window = Window::read(&mut reader, &limits, window_tokens)?;
        if window.lines.is_empty() {
            break;
        }
        let started = Instant::now();
        let scores = score_sequences(&decoder, &window.sequences, batch_tokens, parallelism)
            .map_err(Failure::from)?;
        report.count(&window.sequences, started.elapsed());
        num_unreadable += window.write(scores, out)?;
        if let (Some(progress), Some((done, total))) = (&mut progress, reader.progress()) {
            progress.count(done, total, &report.rate());
        }
    }
    if let Some(progress) = progress {
        progress.finish();
    }
    if args.verbose {
        // Nobody is told where standard error is closed.
        let _ = writeln!(std::io::stderr(), "{}", report.line());
    }
    lines::unreadable_lines(&args.file, num_unreadable, "with `id` and `input_ids`")
}

fn load(args: &ScoreArgs) -> Result<Decoder, Failure> {
    let device = open_device(&args.device)?;
    set_num_threads(usize::from(args.num_threads))?;
    keep_freed_memory();
    let kind = match args.dtype {
        DtypeArg::F32 => Kind::Float,
        DtypeArg::Bf16 => Kind::BFloat16,
    };
    Decoder::load(folder(args), device, kind).map_err(model_failure)
}

fn folder(args: &ScoreArgs) -> ModelFolder<'_> {
    ModelFolder::new(&args.model).with_base(args.base.as_deref())
}

/// A missing file says which, and that a model was expected.
fn model_failure(error: asyncthink_model::Error) -> Failure {
    let is_missing = matches!(&error, asyncthink_model::Error::Io(error)
        if error.kind() == std::io::ErrorKind::NotFound);
    let failure = Failure::from(error);
    if is_missing {
        failure.hint(MODEL_HINT)
    } else {
        failure
    }
}

/// What a model can be asked.
struct Limits {
    vocab_size: i64,
    max_tokens: usize,
}

impl Limits {
    fn of(args: &ScoreArgs) -> Result<Self, Failure> {
        if !args.model.is_dir() {
            let message = format!("`--model {}`: no such folder", args.model.display());
            return Err(Failure::input(message).hint(MODEL_HINT));
        }
        preflight::check_base(&args.model, args.base.as_deref())?;
        let report = check_folder(folder(args)).map_err(model_failure)?;
        preflight::warn(&report.warnings);
        let config = report.config;
        Ok(Self {
            vocab_size: config.vocab_size,
            max_tokens: usize::try_from(config.max_position_embeddings).unwrap_or(usize::MAX),
        })
    }

    fn check(&self, ids: &[i64]) -> Result<Vec<TokenId>, String> {
        if ids.is_empty() {
            return Err("`input_ids` is empty: at least 1 id is needed".to_owned());
        }
        if ids.len() > self.max_tokens {
            return Err(format!(
                "`input_ids` has {} ids, more than the model's `max_position_embeddings`: {}",
                ids.len(),
                self.max_tokens
            ));
        }
        ids.iter()
            .enumerate()
            .map(|(index, &id)| {
                u32::try_from(id)
                    .ok()
                    .filter(|_| id < self.vocab_size)
                    .map(TokenId)
                    .ok_or_else(|| {
                        format!(
                            "`input_ids[{index}]` is {id}, which is not in the vocabulary of {} ids from 0",
                            self.vocab_size
                        )
                    })
            })
            .collect()
    }
}

/// Lines that are answered together.
#[derive(Default)]
struct Window {
    /// The id of each line, in order.
    lines: Vec<Result<Id, Unreadable>>,
    /// The ids of the lines that could be read, in order.
    sequences: Vec<Vec<TokenId>>,
}

impl Window {
    fn read(
        reader: &mut LineReader,
        limits: &Limits,
        window_tokens: usize,
    ) -> Result<Self, Failure> {
        let mut window = Self::default();
        let (mut num_tokens, mut num_bytes) = (0, 0);
        while num_tokens < window_tokens
            && num_bytes < lines::MAX_BATCH_BYTES
            && window.lines.len() < lines::MAX_BATCH_LINES
            && let Some(line) = reader.next_line()?
        {
            let line = line.and_then(|line| {
                num_bytes += line.bytes.len();
                let IdsLine { id, input_ids } = lines::parse(&line)?;
                match limits.check(&input_ids) {
                    Ok(ids) => Ok((id, ids)),
                    Err(message) => Err(Unreadable { id, message }),
                }
            });
            window.lines.push(line.map(|(id, ids)| {
                num_tokens += ids.len();
                window.sequences.push(ids);
                id
            }));
        }
        Ok(window)
    }

    /// Writes the answers and gives the number of lines that could not be read.
    fn write(self, scores: Vec<Vec<f32>>, out: &mut dyn Write) -> Result<u64, Failure> {
        let mut scores = scores.into_iter();
        let mut num_unreadable = 0;
        for line in self.lines {
            let answer = line.map(|id| ScoreLine {
                id,
                logprobs: scores.next().unwrap_or_default(),
            });
            match &answer {
                Ok(line) if !line.logprobs.iter().all(|value| value.is_finite()) => {
                    let id = line.id.as_deref().map_or("null", RawValue::get);
                    let message = format!("a log-probability of line `{id}` is not a number");
                    return Err(Failure::run(message).hint(
                        "the model's weights hold values that are not finite: fetch or train it again",
                    ));
                }
                Ok(_) => {}
                Err(_) => num_unreadable += 1,
            }
            out.write_all(&lines::render(&answer)?)?;
        }
        // Answers are of use while others are still computed.
        out.flush()?;
        Ok(num_unreadable)
    }
}

/// What `--verbose` says at the end.
#[derive(Default)]
struct Report {
    num_sequences: usize,
    num_tokens: usize,
    seconds: f64,
    load_seconds: f64,
    load_peak_bytes: Option<u64>,
}

impl Report {
    fn count(&mut self, sequences: &[Vec<TokenId>], time: Duration) {
        self.num_sequences += sequences.len();
        self.num_tokens += sequences.iter().map(Vec::len).sum::<usize>();
        self.seconds += time.as_secs_f64();
    }

    fn tokens_per_second(&self) -> f64 {
        self.num_tokens as f64 / self.seconds.max(1e-9)
    }

    fn rate(&self) -> String {
        format!(
            "bytes, {} sequences, {:.0} tokens/s",
            self.num_sequences,
            self.tokens_per_second()
        )
    }

    /// For people and programs: `name=value`, in a fixed order.
    fn line(&self) -> String {
        let peak = self.load_peak_bytes.map_or_else(
            || "unknown".to_owned(),
            |bytes| format!("{:.1}", bytes as f64 / f64::from(1 << 20)),
        );
        format!(
            "score: sequences={} tokens={} seconds={:.3} tokens_per_second={:.1} load_seconds={:.3} load_peak_mib={peak}",
            self.num_sequences,
            self.num_tokens,
            self.seconds,
            self.tokens_per_second(),
            self.load_seconds
        )
    }
}
