//! Checkpoints as transactions, and the folder of a run.
//!
//! `checkpoints/step_N/` is a Hugging Face model folder with the tokenizer's files, `asyncthink.json` (prompts and
//! protocol), and `trainer/` (optimizer, state, manifest). It is written under a hidden name, every file and folder is
//! synced, and one rename makes it appear. Then `latest`, a symbolic link, is replaced by a rename, then `best` where there
//! is one, and only then are old checkpoints removed, again by a rename first. A process killed at any moment leaves whole
//! checkpoints and hidden leftovers, which the next start removes.

mod aside;
mod background;
mod disk;
mod error;
pub mod fingerprint;
mod layout;
mod links;
mod lock;
mod manifest;
mod parts;
mod readme;
mod retention;
mod state;
mod store;
mod written;

pub use aside::SetAside;
pub use background::Task;
pub use disk::{remove, sync};
pub use error::{Error, KeyDifference, Result};
pub use layout::RunLayout;
pub use lock::StageLock;
pub use manifest::model_identity;
pub use readme::{Contents, Readme};
pub use retention::Retention;
pub use state::{BestEvaluation, TrainerState, new_run_id};
pub use store::{Checkpoint, CheckpointStore, Found, PartialCheckpoint, newest_model};
pub use written::{Part, wait_for_parts};
