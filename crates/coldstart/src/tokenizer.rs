//! The tokenizer of the run.

use asyncthink_data::{PromptTemplates, TaskTokenizerConfig, Tokenizer, task_tokenizer};
use asyncthink_protocol::{ANSWER_CLOSE, ANSWER_OPEN, RETURN_CLOSE, RETURN_OPEN, SubQueryId};
use asyncthink_recipe::NumberTokens;
use asyncthink_tasks::{Problem, ProblemSet};

use crate::error::Result;
use crate::settings::{ColdstartSettings, TokenizerSource};

/// Largest number that is a token of its own in a tokenizer made from the task's text.
const MAX_NUMBER_TOKEN: u64 = 300;

/// The templates and the tokenizer, which go together.
pub(crate) fn templates_and_tokenizer(
    settings: &ColdstartSettings,
    problems: &ProblemSet,
) -> Result<(PromptTemplates, Tokenizer)> {
    let templates = settings.templates()?;
    let tokenizer = match &settings.tokenizer {
        TokenizerSource::Model(path) => Tokenizer::from_dir(path)?,
        TokenizerSource::Task { number_tokens, .. } => {
            make_tokenizer(settings, *number_tokens, problems, &templates)?
        }
    };
    if templates.chat().is_some() {
        templates.check_chat(tokenizer.chat_template()?)?;
    }
    Ok((templates, tokenizer))
}

/// Makes a tokenizer from the tags, the words of the teacher and the prompts of a problem.
fn make_tokenizer(
    settings: &ColdstartSettings,
    number_tokens: NumberTokens,
    problems: &ProblemSet,
    templates: &PromptTemplates,
) -> Result<Tokenizer> {
    let tags = settings.rules().tags;
    let mut corpus: Vec<String> = [ANSWER_OPEN, ANSWER_CLOSE, RETURN_OPEN, RETURN_CLOSE]
        .map(str::to_owned)
        .into();
    corpus.extend(settings.teacher.vocabulary(settings.task.task()));
    for id in (1..=settings.max_forks().max(1)).map(SubQueryId) {
        corpus.extend([
            tags.fork_open(id),
            tags.fork_close(id),
            tags.join_open(id),
            tags.join_close(id),
        ]);
    }
    let all = || {
        let train = problems.train.iter();
        train.chain(&problems.validation).chain(&problems.test)
    };
    // The words of the template; what else a problem brings is spelled, and numbers have tokens up to a bound.
    for problem in all().take(1) {
        let query = templates.query(&problem.fields());
        corpus.extend([templates.organizer(&query), templates.worker(&query)]);
    }
    let max_number = match number_tokens {
        NumberTokens::Pool => all().map(Problem::largest_number).max(),
        NumberTokens::Whole => all().map(Problem::largest_result).max(),
    };
    let config = TaskTokenizerConfig {
        max_number: max_number.unwrap_or(0).min(MAX_NUMBER_TOKEN),
        ..TaskTokenizerConfig::default()
    };
    Ok(task_tokenizer(corpus.iter().map(String::as_str), &config)?)
}
