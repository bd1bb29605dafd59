//! The solver: traces from true solutions, for every task that can write them.
//!
//! The task's [`Solver`] writes what agents think, ask, return and answer; this teacher makes queries of problems and traces
//! of texts, and solves problems on all threads.

use std::collections::{BTreeMap, BTreeSet};

use asyncthink_data::PromptTemplates;
use asyncthink_protocol::{Protocol, RETURN_CLOSE, RETURN_OPEN, Step, SubQueryId, TraceBuilder};
use asyncthink_recipe::{Catalogue, SynthSection};
use asyncthink_tasks::{
    Move, Problem, ScriptStep, SolvedProblem, Solver, SolverSettings, Task, WorkerScript,
};
use rayon::prelude::*;
use serde_json::Value;

use super::seam::{Draft, Lesson, Teacher, TeacherContext, TraceWriter};
use crate::error::{Error, Result};
use crate::seeds::{Stream, seed_of};
use crate::topology::Event;

/// Name in recipes and in the provenance of pairs.
const NAME: &str = "solver";

/// Problems solved between two calls of the progress function.
const SOLVE_CHUNK: usize = 256;

/// The teacher of every task that has a [`Solver`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SolverTeacher;

impl Teacher for SolverTeacher {
    fn name(&self) -> &'static str {
        NAME
    }

    fn options_schema(&self) -> Value {
        Catalogue::no_options("A solver writes the traces. Its options are the keys of `[synth]`.")
    }

    fn can_teach(&self, task: &dyn Task) -> bool {
        task.solver().is_some()
    }

    fn vocabulary(&self, task: &dyn Task) -> Vec<String> {
        task.solver().map_or_else(Vec::new, Solver::vocabulary)
    }

    fn open<'a>(&self, context: TeacherContext<'a>) -> Result<Box<dyn TraceWriter + 'a>> {
        let solver = context.task.solver();
        Ok(Box::new(SolverWriter {
            solver: solver.ok_or_else(|| not_taught(context.task.name()))?,
            settings: solver_settings(context.section),
            protocol: context.protocol,
            templates: context.templates,
            held_out: context.held_out,
            seed: seed_of(context.seed, Stream::Solver, 0),
            solved: BTreeMap::new(),
        }))
    }
}

/// Solves problems and writes their traces.
struct SolverWriter<'a> {
    solver: &'a dyn Solver,
    settings: SolverSettings,
    protocol: Protocol,
    templates: &'a PromptTemplates,
    held_out: &'a BTreeSet<String>,
    /// Seed of the search for solutions.
    seed: u64,
    /// Solved problems by their index.
    solved: BTreeMap<usize, Box<dyn SolvedProblem>>,
}

impl TraceWriter for SolverWriter<'_> {
    fn prepare(
        &mut self,
        problems: &[(usize, &Problem)],
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<()> {
        let (solver, seed) = (self.solver, self.seed);
        for chunk in problems.chunks(SOLVE_CHUNK) {
            let solved = chunk.par_iter().map(|&(index, problem)| {
                let solved = solver.solve(problem, seed);
                let solved = solved.ok_or_else(|| not_taught(problem.task_name()))?;
                Ok((index, solved))
            });
            self.solved.extend(solved.collect::<Result<Vec<_>>>()?);
            progress(self.solved.len(), problems.len());
        }
        Ok(())
    }

    fn write(&self, lessons: &[Lesson<'_>]) -> Result<Vec<Result<Draft, String>>> {
        lessons
            .par_iter()
            .map(|lesson| self.write_one(lesson).map(Ok))
            .collect()
    }
}

impl SolverWriter<'_> {
    fn write_one(&self, lesson: &Lesson<'_>) -> Result<Draft> {
        let solved = self.solved.get(&lesson.problem_index);
        let solved = solved.ok_or_else(|| Error::Teacher {
            teacher: NAME.to_owned(),
            message: format!("problem {} is not prepared", lesson.problem_index),
        })?;
        let mut rng = lesson.rng.clone();
        let variant = solved.variant(&self.settings, self.held_out, &mut rng);
        let problem = match &variant {
            Some(variant) => variant.problem(),
            None => lesson.problem.clone(),
        };
        let query = self.templates.query(&problem.fields());
        let moves: Vec<Move> = lesson.topology.iter().copied().map(to_move).collect();
        let asked = variant.as_ref().unwrap_or(solved);
        let script = asked.write(&query, &moves, &self.settings, &mut rng);
        let steps = script.into_iter().map(to_step).collect();
        Ok(Draft {
            problem,
            query,
            text: TraceBuilder::from_steps(self.protocol, steps).render_unchecked(),
        })
    }
}

/// The keys of `[synth]` that solvers read.
fn solver_settings(section: &SynthSection) -> SolverSettings {
    SolverSettings {
        max_attempts_organizer: section.max_attempts_organizer,
        max_attempts_worker: section.max_attempts_worker,
        hit_rate: section.hit_rate,
        correct_answer_rate: section.correct_answer_rate,
        persistence_rate: section.persistence_rate,
        wrong_return_rate: section.wrong_return_rate,
        focus_rate: section.focus_rate,
        other_target_rate: section.other_target_rate,
        near_target_rate: section.near_target_rate,
        value_width: section.value_width,
    }
}

fn to_move(event: Event) -> Move {
    match event {
        Event::Fork(id) => Move::Fork(id.0),
        Event::Join(id) => Move::Join(id.0),
    }
}

fn to_step(step: ScriptStep) -> Step {
    match step {
        ScriptStep::Think(text) => Step::Think(text),
        ScriptStep::Fork {
            id,
            sub_query,
            worker: WorkerScript { think, returned },
        } => Step::Fork {
            id: SubQueryId(id),
            sub_query,
            worker_text: format!("{think}{RETURN_OPEN}{returned}{RETURN_CLOSE}"),
        },
        ScriptStep::Join(id) => Step::Join(SubQueryId(id)),
        ScriptStep::Answer(text) => Step::Answer(text),
    }
}

fn not_taught(task: &str) -> Error {
    Error::TaskNotTaught {
        teacher: NAME.to_owned(),
        task: task.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_returns_between_tags() {
        let fork = ScriptStep::Fork {
            id: 2,
            sub_query: "ask".to_owned(),
            worker: WorkerScript {
                think: "try\n".to_owned(),
                returned: "found".to_owned(),
            },
        };
        let expected = Step::Fork {
            id: SubQueryId(2),
            sub_query: "ask".to_owned(),
            worker_text: "try\n<RETURN>found</RETURN>".to_owned(),
        };
        assert_eq!(to_step(fork), expected);
    }
}
