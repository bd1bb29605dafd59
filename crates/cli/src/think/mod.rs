//! The command `think`: one episode of organizer and workers, live.

mod args;
mod lanes;
mod model;
mod report;
mod text;
mod view;

use std::io::{self, Read as _, Write};
use std::sync::Arc;
use std::time::Instant;

use asyncthink_model::{ModelConfig, Parallelism, Precision, PretrainedModel, check_folder};
use asyncthink_rollout::{
    Episode, EpisodeSampler, Prompt, Query, RolloutEvent, RolloutObserver, RolloutProgress,
};
use asyncthink_torch::{keep_freed_memory, open_device, set_num_threads};
use asyncthink_trainer::StopFlag;

pub(crate) use self::args::ThinkArgs;
use self::model::ThinkModel;
use self::report::{ThinkLine, speed, write_summary};
use self::view::{LiveView, PlainView, Silent, View};
use crate::failure::Failure;
use crate::{preflight, signals};

/// Bytes of the longest query that is read from standard input.
const MAX_QUERY_BYTES: usize = 16 << 20;

pub(crate) fn run(args: &ThinkArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let query_text = query_text(&args.query)?;
    let mut model = ThinkModel::read(&args.model, args.base.as_deref())?;
    args.override_card(&mut model.card);
    let sampler = EpisodeSampler::new(&model.card, args.temperature)?;
    let prompt = prompt(&model, &sampler, query_text)?;
    preflight::warn(&check_folder(model.folder())?.warnings);
    let stop = signals::stop_flag()?;
    let device = open_device(&args.device)?;
    set_num_threads(0)?;
    keep_freed_memory();
    announce(args, &model);
    let files = PretrainedModel::load(model.folder(), device, Precision::F32)?;
    Parallelism::for_decoder(&files.decoder).apply();
    let query = Query {
        prompt: Arc::new(prompt),
        sample_index: 0,
        seed: args.seed,
    };
    let start = Instant::now();
    let episode = {
        let mut view = view(args, out);
        play(&sampler, &files, &query, view.as_mut(), &stop)?
    };
    let time = start.elapsed();
    if args.json {
        let protocol = model.card.rollout_settings().protocol;
        let draw = (args.seed, args.temperature);
        ThinkLine::of(
            &episode,
            protocol,
            &files.tokenizer,
            &query.prompt.query,
            draw,
        )
        .write(out)?;
    } else {
        write_summary(&episode, out)?;
    }
    out.flush()?;
    say(&speed(episode.decoded_tokens(), time));
    Ok(())
}

/// The view that suits standard output.
fn view<'a>(args: &ThinkArgs, out: &'a mut dyn Write) -> Box<dyn View + 'a> {
    if args.json {
        return Box::new(Silent);
    }
    match LiveView::on_stdout() {
        Some(view) => Box::new(view),
        None => Box::new(PlainView::new(out)),
    }
}

/// Runs the episode; a signal is a failure.
fn play(
    sampler: &EpisodeSampler,
    files: &PretrainedModel,
    query: &Query,
    view: &mut dyn View,
    stop: &StopFlag,
) -> Result<Episode, Failure> {
    let mut watcher = Watcher {
        view,
        stop,
        failed: None,
    };
    // Loading takes long enough for a signal.
    let result = match stop.requested() {
        Some(_) => Ok(None),
        None => sampler.play(&files.decoder, &files.tokenizer, query, &mut watcher),
    };
    let shown = watcher.failed.map_or(Ok(()), Err);
    // Whatever happened, the terminal is left as it was found.
    let finished = watcher.view.finish();
    match (result?, stop.requested()) {
        (Some(episode), _) => {
            shown.and(finished)?;
            Ok(episode)
        }
        (None, Some(signal)) => {
            say(&format!("think: stopped by {}", signals::name(signal)));
            Err(Failure::signal(signal))
        }
        (None, None) => {
            shown.and(finished)?;
            Err(Failure::run("the episode stopped without an end"))
        }
    }
}

/// Passes what happens to the view, and stops where nobody looks any more.
struct Watcher<'a> {
    view: &'a mut dyn View,
    stop: &'a StopFlag,
    failed: Option<io::Error>,
}

impl Watcher<'_> {
    fn keep(&mut self, result: io::Result<()>) {
        if let Err(error) = result {
            self.failed.get_or_insert(error);
        }
    }
}

impl RolloutObserver for Watcher<'_> {
    fn event(&mut self, event: &RolloutEvent<'_>) {
        if self.failed.is_none() {
            let result = self.view.event(event);
            self.keep(result);
        }
    }

    fn step(&mut self, _: RolloutProgress) -> bool {
        if self.failed.is_none() {
            let result = self.view.refresh();
            self.keep(result);
        }
        self.failed.is_none() && self.stop.requested().is_none()
    }
}

fn query_text(given: &str) -> Result<String, Failure> {
    let text = if given == "-" {
        from_stdin()?
    } else {
        given.to_owned()
    };
    if text.trim().is_empty() {
        return Err(Failure::input("the query is empty")
            .hint("give the question as an argument, or `-` to read it from standard input"));
    }
    Ok(text)
}

/// Standard input without the newline at its end.
fn from_stdin() -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let limit = MAX_QUERY_BYTES as u64 + 1;
    io::stdin().lock().take(limit).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_QUERY_BYTES {
        return Err(Failure::input(format!(
            "the query on standard input has more than {} MiB",
            MAX_QUERY_BYTES >> 20
        ))
        .hint("a query must fit into the model's context"));
    }
    let mut text = String::from_utf8(bytes).map_err(|error| {
        Failure::input("the query on standard input is not UTF-8")
            .cause(error.utf8_error().to_string())
            .hint("convert it to UTF-8")
    })?;
    let end = text.trim_end_matches(['\r', '\n']).len();
    text.truncate(end);
    Ok(text)
}

/// The prompt of the query. One that leaves no room for an answer is found before the weights are
/// loaded.
fn prompt(model: &ThinkModel, sampler: &EpisodeSampler, query: String) -> Result<Prompt, Failure> {
    let prompt = sampler.prompt(&model.tokenizer, 0, query)?;
    let num_tokens = prompt.ids.len();
    let max_tokens = context_tokens(model)?;
    if num_tokens < max_tokens {
        return Ok(prompt);
    }
    let without_query = sampler
        .prompt(&model.tokenizer, 0, String::new())?
        .ids
        .len();
    Err(Failure::input(format!(
        "the prompt has {num_tokens} tokens, and the context of the model only {max_tokens}"
    ))
    .hint(format!(
        "shorten the query: {without_query} tokens of the prompt are the template's, and the answer needs room too"
    )))
}

fn context_tokens(model: &ThinkModel) -> Result<usize, Failure> {
    let config = ModelConfig::from_dir(model.folder())?;
    Ok(usize::try_from(config.max_position_embeddings).unwrap_or(0))
}

fn announce(args: &ThinkArgs, model: &ThinkModel) {
    say(&format!(
        "think: `{}`, capacity {}, temperature {}, seed {}",
        model.dir.display(),
        model.card.capacity,
        args.temperature,
        args.seed
    ));
    if !model.has_card {
        say(
            "note: the model has no `asyncthink.json`, so prompts and budgets are the built-in ones; a model that was not \
             trained on them rarely keeps to the format",
        );
    }
    if let Some(reason) = &model.chat_refusal {
        say(&format!(
            "warning: the model's chat template is not used, and prompts are plain text: {reason}"
        ));
    }
}

/// Says something on standard error; nobody is told where it is closed.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}
