//! A teacher of its own: every agent repeats what it is asked.

use asyncthink_coldstart::teacher::{Draft, Lesson, Teacher, TeacherContext, TraceWriter};
use asyncthink_coldstart::{Error, Event, Result};
use asyncthink_protocol::{Protocol, Step, TraceBuilder};
use asyncthink_tasks::{Task, schema_of};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

#[derive(Debug)]
pub(crate) struct Parrot;

/// Repeats the query.
#[derive(Debug, Deserialize, JsonSchema)]
struct ParrotOptions {
    /// Every so many traces the parrot says nothing. Default 5.
    #[serde(default = "five")]
    #[schemars(range(min = 2))]
    silent_every: u64,
}

fn five() -> u64 {
    5
}

impl Teacher for Parrot {
    fn name(&self) -> &'static str {
        "parrot"
    }

    fn options_schema(&self) -> Value {
        schema_of::<ParrotOptions>()
    }

    fn can_teach(&self, task: &dyn Task) -> bool {
        task.name() == "echo"
    }

    fn vocabulary(&self, _task: &dyn Task) -> Vec<String> {
        Vec::new()
    }

    fn open<'a>(&self, context: TeacherContext<'a>) -> Result<Box<dyn TraceWriter + 'a>> {
        let options = context.section.teacher.parse();
        let options: ParrotOptions = options.map_err(|error| Error::Teacher {
            teacher: "parrot".to_owned(),
            message: error.to_string(),
        })?;
        Ok(Box::new(ParrotWriter { context, options }))
    }
}

struct ParrotWriter<'a> {
    context: TeacherContext<'a>,
    options: ParrotOptions,
}

impl TraceWriter for ParrotWriter<'_> {
    fn write(&self, lessons: &[Lesson<'_>]) -> Result<Vec<Result<Draft, String>>> {
        Ok(lessons
            .iter()
            .map(|lesson| self.write_one(lesson))
            .collect())
    }
}

impl ParrotWriter<'_> {
    fn write_one(&self, lesson: &Lesson<'_>) -> Result<Draft, String> {
        if lesson.trace_id.is_multiple_of(self.options.silent_every) {
            return Err("silent".to_owned());
        }
        let query = self.context.templates.query(&lesson.problem.fields());
        let mut steps = Vec::new();
        for event in &lesson.topology {
            steps.push(match *event {
                Event::Fork(id) => Step::Fork {
                    id,
                    sub_query: query.clone(),
                    worker_text: format!("<RETURN>{query}</RETURN>"),
                },
                Event::Join(id) => Step::Join(id),
            });
        }
        steps.push(Step::Answer(query.clone()));
        let protocol: Protocol = self.context.protocol;
        Ok(Draft {
            problem: lesson.problem.clone(),
            query,
            text: TraceBuilder::from_steps(protocol, steps).render_unchecked(),
        })
    }
}
