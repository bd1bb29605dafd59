//! Measuring a model on held-out problems.

use asyncthink_data::{Stream, derive_seed};
use asyncthink_distributed::Ranks;
use asyncthink_rollout::GradedEpisode;
use asyncthink_tasks::Problem;

use crate::bootstrap::Bootstrap;
use crate::episode_line::EpisodeLine;
use crate::error::{Error, Result};
use crate::gather::gather;
use crate::method::{EvalProgress, Method, OpenMethod, Question, Target};
use crate::selection::{Selected, select};
use crate::settings::EvalSettings;
use crate::summary::{Evaluation, summarise};

/// Runs a model by a method on held-out problems, or on a sample of them where the settings ask for fewer.
///
/// Returns the metrics and what they were counted from, problem after problem. Seeds depend on problem and sample only, so
/// two models meet the same draws. `progress` may stop it by returning `false`.
///
/// A collective: every rank samples a contiguous share of the problems, and the first rank alone gets a result. It is the
/// same for any number of ranks, up to the rounding of sums.
///
/// # Errors
/// When the settings ask for more problems than there are, the model cannot be read, or the model fails; all ranks fail where
/// one does. [`Error::Stopped`] on all ranks where one was stopped.
pub fn evaluate(
    target: &Target<'_>,
    problems: &[Problem],
    method: &dyn Method,
    ranks: &Ranks,
    progress: &mut dyn FnMut(EvalProgress) -> bool,
) -> Result<Option<(Evaluation, Vec<EpisodeLine>)>> {
    let settings = target.settings;
    ranks.set_phase("eval: loading the model");
    let opened =
        select(problems, settings).and_then(|selected| Ok((selected, method.open(target)?)));
    let (problems, mut open) = ranks.agree(opened)?;
    check_same(settings, &problems, open.as_ref(), ranks)?;
    ranks.set_phase("eval: sampling");
    // A rank that fails from here on ends at once: the others may have hours to go.
    let own = sample(settings, &problems, open.as_mut(), ranks, progress)?;
    ranks.set_phase("eval: gathering the episodes");
    if ranks.any(own.is_none())? {
        return Err(Error::Stopped);
    }
    let all = gather(
        own.unwrap_or_default(),
        &problems.iter().map(|one| one.index).collect::<Vec<_>>(),
        settings.samples_per_problem,
        ranks,
    )?;
    let Some(episodes) = all else {
        return Ok(None);
    };
    let keys: Vec<String> = problems.iter().map(|one| one.problem.split_key()).collect();
    let bootstrap = Bootstrap::new(
        &keys,
        settings.bootstrap_samples,
        settings.confidence,
        settings.seed,
    );
    let evaluation = Evaluation {
        model: target.model_dir.display().to_string(),
        split: settings.split,
        num_problems: problems.len(),
        num_split_keys: bootstrap.num_clusters(),
        samples_per_problem: settings.samples_per_problem,
        temperature: settings.temperature,
        confidence: settings.confidence,
        bootstrap_samples: settings.bootstrap_samples,
        seed: settings.seed,
        metrics: summarise(&episodes, problems.len(), &bootstrap),
    };
    let lines = episodes
        .iter()
        .map(|graded| EpisodeLine::new(graded, open.raw_trace(&graded.episode)))
        .collect();
    Ok(Some((evaluation, lines)))
}

/// Fails on all ranks unless they are to measure the same.
fn check_same(
    settings: &EvalSettings,
    problems: &[Selected<'_>],
    open: &dyn OpenMethod,
    ranks: &Ranks,
) -> Result<()> {
    let text = format!("{settings:?} {} {problems:?}", open.identity());
    ranks.check_same("recipe, rules and problems", &text)?;
    Ok(ranks.check_same_weights(open.parameters())?)
}

/// The episodes of this rank's share of the problems; `None` where it was stopped.
fn sample(
    settings: &EvalSettings,
    problems: &[Selected<'_>],
    open: &mut dyn OpenMethod,
    ranks: &Ranks,
    progress: &mut dyn FnMut(EvalProgress) -> bool,
) -> Result<Option<Vec<GradedEpisode>>> {
    let mut questions = Vec::new();
    for &Selected { index, problem } in &problems[ranks.share_of(problems.len())] {
        for sample_index in 0..settings.samples_per_problem {
            let position = (index as u64, sample_index as u64);
            questions.push(Question {
                problem,
                problem_index: index,
                sample_index,
                seed: derive_seed(settings.seed, Stream::Evaluation, position.0, position.1),
            });
        }
    }
    if questions.is_empty() {
        return Ok(Some(Vec::new()));
    }
    open.run(&questions, progress)
}
