//! From the numbers of traces to checked traces: topology, lesson, teacher, rule filter.

use std::collections::BTreeSet;
use std::ops::Range;

use asyncthink_data::{PromptTemplates, Tokenizer};
use asyncthink_tasks::Problem;
use rayon::prelude::*;

use crate::assignment::Assignment;
use crate::error::{Error, Result};
use crate::exchange::Stride;
use crate::filter::{Provenance, RuleFilter};
use crate::seeds::{Stream, generator, seed_of};
use crate::settings::ColdstartSettings;
use crate::teacher::{Lesson, TeacherContext, TraceWriter};
use crate::topology::Topologies;
use crate::trace::SynthTrace;

/// Longest reason of a teacher that is kept.
pub(crate) const MAX_REASON_BYTES: usize = 64;

/// Everything that the traces of a run have in common.
pub(crate) struct Inputs<'a> {
    pub(crate) settings: &'a ColdstartSettings,
    pub(crate) problems: &'a [Problem],
    pub(crate) templates: &'a PromptTemplates,
    pub(crate) tokenizer: &'a Tokenizer,
    /// Split keys of the test problems.
    pub(crate) held_out: &'a BTreeSet<String>,
    pub(crate) seed: u64,
}

/// Writes and checks the traces of one rank.
pub(crate) struct Pipeline<'a> {
    problems: &'a [Problem],
    seed: u64,
    topologies: Topologies,
    assignment: Assignment,
    writer: Box<dyn TraceWriter + 'a>,
    filter: RuleFilter<'a>,
    teacher: &'a str,
}

impl<'a> Pipeline<'a> {
    pub(crate) fn new(inputs: &Inputs<'a>, stride: Stride) -> Result<Self> {
        let &Inputs {
            settings,
            problems,
            templates,
            tokenizer,
            held_out,
            seed,
        } = inputs;
        let protocol = settings.rules();
        Ok(Self {
            problems,
            seed,
            topologies: Topologies::new(protocol.capacity, settings.max_forks())?,
            assignment: Assignment::new(problems.len(), settings.synth.num_traces, stride),
            writer: settings.teacher.open(TeacherContext {
                task: settings.task.task(),
                section: &settings.synth,
                protocol,
                templates,
                held_out,
                seed,
            })?,
            filter: RuleFilter::new(settings, templates, tokenizer),
            teacher: settings.teacher.name(),
        })
    }

    pub(crate) fn assignment(&self) -> Assignment {
        self.assignment
    }

    /// Lets the teacher prepare the problems of this rank.
    pub(crate) fn prepare(&mut self, progress: &mut dyn FnMut(usize, usize)) -> Result<()> {
        let own = self.assignment.own_problems();
        let own: Vec<_> = own.map(|index| (index, &self.problems[index])).collect();
        self.writer.prepare(&own, progress)
    }

    /// Writes those of the traces that are this rank's, each or why it is refused, in order.
    pub(crate) fn write(&self, trace_ids: Range<usize>) -> Result<Vec<Result<SynthTrace, String>>> {
        let own = trace_ids.filter(|&id| self.assignment.is_own(id));
        let lessons: Vec<Lesson<'_>> = own.map(|id| self.lesson(id)).collect();
        let drafts = self.writer.write(&lessons)?;
        if drafts.len() != lessons.len() {
            return Err(Error::Teacher {
                teacher: self.teacher.to_owned(),
                message: format!("{} traces for {} lessons", drafts.len(), lessons.len()),
            });
        }
        let checked = lessons.into_par_iter().zip(drafts).map(|(lesson, draft)| {
            let draft = draft.map_err(short)?;
            let provenance = Provenance {
                trace_id: lesson.trace_id,
                problem_index: lesson.problem_index,
                seed: seed_of(self.seed, Stream::Trace, lesson.trace_id),
                topology: lesson.topology,
            };
            self.filter.check(provenance, draft).map_err(str::to_owned)
        });
        Ok(checked.collect())
    }

    fn lesson(&self, id: usize) -> Lesson<'a> {
        let trace_id = id as u64;
        let problem_index = self.assignment.problem_of(id);
        let mut rng = generator(seed_of(self.seed, Stream::Trace, trace_id));
        Lesson {
            trace_id,
            problem_index,
            problem: &self.problems[problem_index],
            topology: self.topologies.sample(&mut rng),
            rng,
        }
    }
}

fn short(mut reason: String) -> String {
    reason.truncate(reason.floor_char_boundary(MAX_REASON_BYTES));
    reason
}

/// Writes `num_traces` candidate traces over the problems in turn and returns those that pass the rules, in order. None
/// asks for a split key of `held_out`, unless a problem does.
///
/// The stage does the same with progress, replacements for refused traces, and files.
///
/// # Errors
/// The topologies cannot be counted, or the teacher fails.
pub fn synthesize(
    settings: &ColdstartSettings,
    problems: &[Problem],
    templates: &PromptTemplates,
    tokenizer: &Tokenizer,
    held_out: &BTreeSet<String>,
    seed: u64,
) -> Result<Vec<SynthTrace>> {
    let inputs = Inputs {
        settings,
        problems,
        templates,
        tokenizer,
        held_out,
        seed,
    };
    let mut pipeline = Pipeline::new(&inputs, Stride::ALL)?;
    if pipeline.assignment().is_empty() {
        return Ok(Vec::new());
    }
    pipeline.prepare(&mut |_, _| {})?;
    let traces = pipeline.write(0..settings.synth.num_traces)?;
    Ok(traces.into_iter().flatten().collect())
}
