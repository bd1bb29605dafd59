//! Run options and outcomes.

use std::path::PathBuf;
use std::sync::Arc;

use asyncthink_checkpoint::RunLayout;
use asyncthink_distributed::Ranks;
use asyncthink_launch::World;
use asyncthink_recipe::Stage;

use super::launch_file::LaunchFile;

/// Where a run begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Resume {
    /// From the newest readable checkpoint, else from the start.
    #[default]
    Auto,
    /// From the start; what an earlier run left is moved aside.
    Never,
    /// From this checkpoint.
    From(PathBuf),
}

/// Options of a run.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// Where the run begins.
    pub resume: Resume,
    /// The processes that run it together. All of them need the run's folder.
    pub ranks: Arc<Ranks>,
    /// The attempt of a launcher that this is, which may try again. Where one of them has begun as `resume` says, later ones go
    /// on from its checkpoints.
    pub attempt: Option<Attempt>,
}

/// One of the attempts of a launch, which starts its ranks again when one fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Identity of the launcher of this rank; every node has a launcher of its own.
    pub launcher: String,
    /// Whether there may have been an earlier one. Launchers do not count them alike: torchrun counts failures of its own ranks,
    /// and not that it starts them again with those of another node.
    pub may_be_later: bool,
}

impl Attempt {
    /// The attempt of this process; `None` where no launcher started it.
    pub fn of(world: &World) -> Option<Self> {
        Some(Self {
            launcher: world.launcher()?,
            may_be_later: world.may_be_restarted(),
        })
    }

    /// Whether an earlier attempt may have begun the stage; which launch that was of is not looked at.
    pub fn may_go_on(&self, layout: &RunLayout, stage: Stage) -> bool {
        self.may_be_later && LaunchFile::of(&layout.stage(stage)).exists()
    }
}

/// Outcome of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunOutcome {
    /// All steps are done, or evaluations ended the run.
    Finished {
        /// The trained model: the last checkpoint.
        model: PathBuf,
        /// Steps that were done.
        num_steps: u64,
    },
    /// The stop flag was raised.
    Stopped {
        /// The signal that raised it.
        signal: i32,
        /// The checkpoint to resume from; `None` if no step was done.
        checkpoint: Option<PathBuf>,
        /// Steps done.
        step: u64,
    },
}
