//! The stages of a run.

/// A stage of a run, named as its command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Problems and cold-start traces.
    Synth,
    /// Cold-start format fine-tuning.
    Sft,
    /// Organizer-worker policy optimisation.
    Grpo,
    /// Measurement.
    Eval,
}

impl Stage {
    /// The name of the command and of the section.
    pub fn name(self) -> &'static str {
        match self {
            Self::Synth => "synth",
            Self::Sft => "sft",
            Self::Grpo => "grpo",
            Self::Eval => "eval",
        }
    }
}
