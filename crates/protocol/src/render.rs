use crate::{
    ANSWER_CLOSE, ANSWER_OPEN, Action, CharCounter, Protocol, RawTrace, RawWorker, SubQueryId,
    Trace, TraceError, returned_text,
};

/// One step of an organizer, to be written as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Plain text.
    Think(String),
    /// Start a worker, whose whole text is known already.
    Fork {
        /// The sub-query's number.
        id: SubQueryId,
        /// What the worker is to do.
        sub_query: String,
        /// Everything that the worker decodes, its return included.
        worker_text: String,
    },
    /// Wait for a worker.
    Join(SubQueryId),
    /// End the episode.
    Answer(String),
}

/// Why steps have no text that reads back as the same steps.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RenderError {
    /// The steps break a rule, or their texts hold tags that do.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// A text holds tags, so that the whole reads as other actions than the steps'.
    #[error("the text of the steps holds tags and reads as other actions")]
    TagsInText,
}

/// Writes an episode as flat text: the inverse of [`Trace::check`].
#[derive(Debug, Clone)]
pub struct TraceBuilder {
    protocol: Protocol,
    steps: Vec<Step>,
}

impl TraceBuilder {
    /// An episode with no steps yet.
    pub fn new(protocol: Protocol) -> Self {
        Self {
            protocol,
            steps: Vec::new(),
        }
    }

    /// An episode of these steps.
    pub fn from_steps(protocol: Protocol, steps: Vec<Step>) -> Self {
        Self { protocol, steps }
    }

    /// Adds plain text.
    #[must_use]
    pub fn think(mut self, text: impl Into<String>) -> Self {
        self.steps.push(Step::Think(text.into()));
        self
    }

    /// Adds a Fork whose worker decodes `worker_text`.
    #[must_use]
    pub fn fork(
        mut self,
        id: SubQueryId,
        sub_query: impl Into<String>,
        worker_text: impl Into<String>,
    ) -> Self {
        self.steps.push(Step::Fork {
            id,
            sub_query: sub_query.into(),
            worker_text: worker_text.into(),
        });
        self
    }

    /// Adds a Join.
    #[must_use]
    pub fn join(mut self, id: SubQueryId) -> Self {
        self.steps.push(Step::Join(id));
        self
    }

    /// Adds the Answer.
    #[must_use]
    pub fn answer(mut self, text: impl Into<String>) -> Self {
        self.steps.push(Step::Answer(text.into()));
        self
    }

    /// The steps so far.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Writes the steps as they are, legal or not. A Join of a sub-query without a worker injects
    /// the closing tag alone.
    pub fn render_unchecked(&self) -> RawTrace {
        let tags = self.protocol.tags;
        let mut organizer = String::new();
        let mut workers: Vec<RawWorker> = Vec::new();
        for step in &self.steps {
            match step {
                Step::Think(text) => organizer.push_str(text),
                Step::Fork {
                    id,
                    sub_query,
                    worker_text,
                } => {
                    organizer.push_str(&tags.fork_open(*id));
                    organizer.push_str(sub_query);
                    organizer.push_str(&tags.fork_close(*id));
                    workers.push(RawWorker {
                        sub_query_id: id.0,
                        text: worker_text.clone(),
                    });
                }
                Step::Join(id) => {
                    let worker = workers.iter().rfind(|worker| worker.sub_query_id == id.0);
                    organizer.push_str(&tags.join_open(*id));
                    organizer.push_str(worker.map_or("", |worker| returned_text(&worker.text)));
                    organizer.push_str(&tags.join_close(*id));
                }
                Step::Answer(text) => {
                    organizer.push_str(ANSWER_OPEN);
                    organizer.push_str(text);
                    organizer.push_str(ANSWER_CLOSE);
                }
            }
        }
        RawTrace {
            capacity: self.protocol.capacity.get(),
            organizer,
            workers,
        }
    }

    /// Writes the steps and reads them back: the result is legal and means exactly the steps.
    ///
    /// # Errors
    ///
    /// Steps that break a rule, and texts with tags in them that read as other actions.
    pub fn build(&self) -> Result<RawTrace, RenderError> {
        let raw = self.render_unchecked();
        let Protocol { tags, overflow, .. } = self.protocol;
        let trace = Trace::check(&raw, tags, overflow, &CharCounter)?;
        let expected = self
            .steps
            .iter()
            .filter(|step| !matches!(step, Step::Think(_)));
        let is_same = expected.clone().count() == trace.actions().len()
            && expected
                .zip(trace.actions())
                .all(|(step, action)| is_same_action(step, action));
        if is_same {
            Ok(raw)
        } else {
            Err(RenderError::TagsInText)
        }
    }
}

fn is_same_action(step: &Step, action: &Action) -> bool {
    match (step, action) {
        (
            Step::Fork { id, sub_query, .. },
            Action::Fork {
                id: read_id,
                sub_query: read,
                ..
            },
        ) => id == read_id && sub_query == read,
        (Step::Join(id), Action::Join { id: read_id, .. }) => id == read_id,
        (Step::Answer(text), Action::Answer { text: read, .. }) => text == read,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Capacity, FormatError, Overflow, TagStyle};

    fn builder(tags: TagStyle) -> TraceBuilder {
        TraceBuilder::new(Protocol {
            tags,
            capacity: Capacity::new(2).expect("positive"),
            overflow: Overflow::Error,
            max_forks: None,
        })
    }

    #[test]
    fn steps_become_the_documented_text() {
        let raw = builder(TagStyle::Hyphen)
            .think("split. ")
            .fork(SubQueryId(1), "try 3", "3 + 4 <RETURN>none</RETURN>")
            .think(" meanwhile ")
            .join(SubQueryId(1))
            .answer("7")
            .build()
            .expect("legal");
        assert_eq!(
            raw.organizer,
            "split. <FORK-1>try 3</FORK-1> meanwhile <JOIN-1>none</JOIN-1><ANSWER>7</ANSWER>"
        );
        assert_eq!(raw.workers.len(), 1);
    }

    #[test]
    fn what_does_not_read_back_is_not_written() {
        let id = SubQueryId(1);
        let tags = TagStyle::Plain;
        let early = builder(tags)
            .think("<ANSWER>0</ANSWER>")
            .answer("1")
            .build();
        assert_eq!(early, Err(RenderError::TagsInText));
        let joined = builder(tags)
            .think("<ANS")
            .think("WER>")
            .answer("1")
            .build();
        assert_eq!(joined, Err(RenderError::TagsInText));
        let cut = builder(tags).answer("a</ANSWER>b").build();
        assert_eq!(cut, Err(RenderError::TagsInText));
        let swallowed = builder(tags).fork(id, "<FORK2>", "").answer("1").build();
        assert!(matches!(swallowed, Err(RenderError::Trace(_))));
        let unanswered = builder(tags).think("hm").build();
        let no_answer = TraceError::Format(FormatError::NoAnswer);
        assert_eq!(unanswered, Err(RenderError::Trace(no_answer)));
    }
}
