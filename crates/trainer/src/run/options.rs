//! Run options and outcomes.

use std::path::PathBuf;
use std::sync::Arc;

use asyncthink_distributed::Ranks;
use asyncthink_launch::World;

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
    /// Which attempt this is, of a launcher that tries again. Where one of them has begun as `resume` says, later ones go
    /// on from its checkpoints.
    pub attempt: Option<Attempt>,
}

/// One of the attempts of a launch, which starts its ranks again when one fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Id shared by all attempts of a launch.
    pub launch: String,
    /// Number of earlier attempts.
    pub num_before: u32,
}

impl Attempt {
    /// The attempt of this process; `None` where no launcher started it.
    pub fn of(world: &World) -> Option<Self> {
        world.master()?;
        // The launcher of the first rank stays the same for as long as a launch lasts.
        let run_id = std::env::var("TORCHELASTIC_RUN_ID").unwrap_or_default();
        Some(Self {
            launch: format!("{run_id} {}", std::os::unix::process::parent_id()),
            num_before: world.restart_count(),
        })
    }
}

/// Outcome of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunOutcome {
    /// All steps are done.
    Finished {
        /// The trained model: the last checkpoint.
        model: PathBuf,
        /// Steps of the run.
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
