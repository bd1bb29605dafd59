//! Checks of a model, its tokenizer and its prompts before anything is loaded or started.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use asyncthink_checkpoint::RunLayout;
use asyncthink_coldstart::{ColdstartSettings, problem_set};
use asyncthink_data::{PromptTemplates, Tokenizer};
use asyncthink_launch::World;
use asyncthink_model::{FolderReport, ModelFolder, check_folder, fitting_tokenizer};
use asyncthink_recipe::{ModelSection, Recipe, Stage};
use asyncthink_rollout::ModelCard;
use asyncthink_tasks::Problem;
use asyncthink_trainer::{new_config, test_problems, train_problems};

use crate::args::ResumeArg;
use crate::cache_report;
use crate::failure::Failure;
use crate::memory_report;

/// Prompts that are tokenized to find the longest: those of the longest texts.
const TOKENIZED_PROMPTS: usize = 256;

/// Says what is passed over, on standard error; nobody is told where it is closed.
pub(crate) fn warn(warnings: &[String]) {
    for warning in warnings {
        let _ = writeln!(std::io::stderr(), "warning: {warning}");
    }
}

/// A base model is given for adapters only, and is a model.
pub(crate) fn check_base(model: &Path, base: Option<&Path>) -> Result<(), Failure> {
    let Some(base) = base else { return Ok(()) };
    let refuse = |reason: &str| Failure::input(format!("`--base {}`: {reason}", base.display()));
    if !base.join("config.json").is_file() {
        return Err(
            refuse("no such folder of a model, with `config.json` in it")
                .hint("give the folder of the model that the adapters were trained on"),
        );
    }
    if !model.join("adapter_config.json").is_file() {
        let reason = format!("`{}` is no adapter folder", model.display());
        return Err(refuse(&reason).hint("leave `--base` out: the folder is a whole model"));
    }
    Ok(())
}

/// Checks the models that a stage begins with by their headers, and says what loading them will pass over.
///
/// Where the stage has checkpoints to go on from, or results that it may keep, a model may be gone that it began with: then
/// those who load one speak.
pub(crate) fn check_models(
    stage: Stage,
    recipe: &Recipe,
    resume: &ResumeArg,
    world: &World,
) -> Result<(), Failure> {
    if stage == Stage::Synth {
        return Ok(());
    }
    let goes_on = match resume {
        ResumeArg::Never => false,
        ResumeArg::Auto => RunLayout::new(&recipe.run_dir).latest_model(stage).exists(),
        ResumeArg::Dir(_) => true,
    };
    let is_loaded = stage != Stage::Eval && !goes_on;
    for dir in first_models(stage, recipe) {
        match check_folder(folder(recipe, &dir)) {
            // One rank speaks for all.
            Ok(report) if world.rank().index() == 0 => warn(&report.warnings),
            Err(error) if is_loaded => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

/// Checks all that a run of the stage would read before it computes anything: model, tokenizer, chat template and prompts.
/// Returns a line for each thing that was checked, or that there is nothing to check of yet.
pub(crate) fn dry_run(stage: Stage, recipe: &Recipe) -> Result<Vec<String>, Failure> {
    let mut lines =
        vec!["checked: the recipe, and that the files which it names are there".to_owned()];
    let dirs = first_models(stage, recipe);
    let (mut tokenizer, mut context_tokens, mut config) = (None, None, None);
    let mut prompt_tokens = 0;
    for dir in &dirs {
        let report = check_folder(folder(recipe, dir))?;
        warn(&report.warnings);
        lines.push(format!(
            "checked: the weights of `{}`: {}",
            dir.display(),
            weights(&report)
        ));
        let found = fitting_tokenizer(folder(recipe, dir))?;
        lines.push(format!(
            "checked: its tokenizer: {} ids",
            found.vocab_size()
        ));
        let tokens = usize::try_from(report.config.max_position_embeddings).unwrap_or(usize::MAX);
        context_tokens = Some(context_tokens.map_or(tokens, |least: usize| least.min(tokens)));
        tokenizer = Some(found);
        config = Some(report.config);
    }
    if let ModelSection::Init(init) = &recipe.model
        && dirs.is_empty()
    {
        lines.push(
            "not checked: the weights, which the run draws or an earlier stage makes".to_owned(),
        );
        context_tokens = Some(init.max_position_embeddings);
        let dir = RunLayout::new(&recipe.run_dir).synth().tokenizer();
        if dir.is_dir() {
            let found = Tokenizer::from_dir(&dir)?;
            lines.push(format!(
                "checked: the tokenizer of `synth`: {} ids",
                found.vocab_size()
            ));
            let eos = found.eos_id().map_or(0, |id| i64::from(id.0));
            config = Some(new_config(init, found.vocab_size(), eos)?);
            tokenizer = Some(found);
        }
    }
    match (tokenizer, context_tokens) {
        (Some(tokenizer), Some(context_tokens)) => {
            let prompts = Prompts {
                templates: ModelCard::new(&recipe.prompts, &recipe.protocol).templates()?,
                tokenizer,
                context_tokens,
            };
            lines.push(prompts.check_worker()?);
            lines.push(match problems(recipe)? {
                Some(problems) => {
                    let (line, longest) = prompts.check_organizer(&problems)?;
                    prompt_tokens = longest;
                    line
                }
                None => {
                    "not checked: the organizer's prompts, whose problems `synth` makes".to_owned()
                }
            });
        }
        _ => lines.push("not checked: the prompts, whose tokenizer `synth` makes".to_owned()),
    }
    if let Some(config) = &config {
        lines.extend(cache_report::lines(stage, recipe, config, prompt_tokens)?);
        lines.extend(memory_report::lines(stage, recipe, config, prompt_tokens)?);
    }
    Ok(lines)
}

fn weights(report: &FolderReport) -> String {
    let adapters = match report.num_adapter_tensors {
        0 => String::new(),
        count => format!(", and {count} of adapters"),
    };
    format!(
        "{} tensors, {:.1} MiB in {} {}{adapters}",
        report.num_tensors,
        report.num_bytes as f64 / f64::from(1 << 20),
        report.num_files,
        if report.num_files == 1 {
            "file"
        } else {
            "files"
        },
    )
}

fn folder<'a>(recipe: &'a Recipe, dir: &'a Path) -> ModelFolder<'a> {
    ModelFolder::new(dir).with_base(recipe.adapter_base.as_deref())
}

/// The folders whose weights a stage reads first, as far as they are there: what an earlier stage makes may not be yet.
fn first_models(stage: Stage, recipe: &Recipe) -> Vec<PathBuf> {
    let layout = RunLayout::new(&recipe.run_dir);
    let own = match &recipe.model {
        ModelSection::Path(dir) => Some(dir.clone()),
        ModelSection::Init(_) => None,
    };
    let made = |stages: &[Stage]| -> Vec<PathBuf> {
        let links = stages.iter().map(|&stage| layout.latest_model(stage));
        links.filter(|link| link.exists()).collect()
    };
    let found = match stage {
        Stage::Synth | Stage::Sft => Vec::new(),
        Stage::Grpo if recipe.sft.is_none() => Vec::new(),
        Stage::Grpo => made(&[Stage::Sft]),
        Stage::Eval => made(&[Stage::Sft, Stage::Grpo]),
    };
    if found.is_empty() {
        own.into_iter().collect()
    } else {
        found
    }
}

/// The problems that `synth` made, or those that it would make; `None` where nothing says what they are.
fn problems(recipe: &Recipe) -> Result<Option<Vec<Problem>>, Failure> {
    let layout = RunLayout::new(&recipe.run_dir);
    let (train, test) = if layout.synth().manifest().is_file() {
        let train = train_problems(&layout, &recipe.task)?;
        (train, test_problems(&layout, &recipe.task)?)
    } else if recipe.synth.is_some() {
        let set = problem_set(&ColdstartSettings::from_recipe(recipe)?)?;
        (set.train, set.test)
    } else {
        return Ok(None);
    };
    Ok(Some([train, test].concat()))
}

/// The prompts of a model.
struct Prompts {
    templates: PromptTemplates,
    tokenizer: Tokenizer,
    context_tokens: usize,
}

impl Prompts {
    /// Renders a worker's prompt but for the sub-query, which an organizer writes.
    fn check_worker(&self) -> Result<String, Failure> {
        let num_tokens = self.templates.worker_ids(&self.tokenizer, "")?.len();
        self.check_length(
            "prompts.worker",
            "a worker's prompt without its sub-query",
            num_tokens,
        )?;
        Ok(format!(
            "checked: a worker's prompt: {num_tokens} tokens and the sub-query"
        ))
    }

    /// Renders the longest of the organizer's prompts, and gives its tokens.
    fn check_organizer(&self, problems: &[Problem]) -> Result<(String, usize), Failure> {
        let mut queries: Vec<String> = problems
            .iter()
            .map(|problem| self.templates.query(&problem.fields()))
            .collect();
        queries.sort_by_key(|query| std::cmp::Reverse(query.len()));
        let mut longest = (0, "");
        for query in queries.iter().take(TOKENIZED_PROMPTS) {
            let num_tokens = self.templates.organizer_ids(&self.tokenizer, query)?.len();
            longest = longest.max((num_tokens, query));
        }
        let (num_tokens, query) = longest;
        let what = format!("the organizer's prompt for `{}`", shortened(query));
        self.check_length("prompts.organizer", &what, num_tokens)?;
        let line = format!(
            "checked: the organizer's prompts of {} problems: at most {num_tokens} tokens, of a context of {}",
            problems.len(),
            self.context_tokens
        );
        Ok((line, num_tokens))
    }

    fn check_length(&self, key: &str, what: &str, num_tokens: usize) -> Result<(), Failure> {
        if num_tokens < self.context_tokens {
            return Ok(());
        }
        let limit = self.context_tokens;
        let message = format!(
            "{what} has {num_tokens} tokens, and the model's context (`max_position_embeddings`) only {limit}"
        );
        Err(Failure::input(message).hint(format!(
            "shorten `{key}` or the problems, or take a model with a longer context"
        )))
    }
}

/// The beginning of a text, as messages show it.
fn shortened(text: &str) -> String {
    const MAX_CHARS: usize = 60;
    let line = text.replace('\n', " ");
    match line.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}
