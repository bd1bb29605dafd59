//! Checkpoints as transactions.
//!
//! `checkpoints/step_N/` is a Hugging Face model folder with the tokenizer's files, `asyncthink.json` (prompts and
//! protocol), and `trainer/` (optimizer, state, manifest). It is written under a hidden name, every file and folder is
//! synced, and one rename makes it appear. Then `latest`, a symbolic link, is replaced by a rename, then `best` where there
//! is one, and only then are old checkpoints removed, again by a rename first. A process killed at any moment leaves whole
//! checkpoints and hidden leftovers, which the next start removes.

mod manifest;
mod retention;
mod state;
mod store;

pub(crate) use manifest::model_identity;
pub use retention::Retention;
pub use state::TrainerState;
pub use store::{Checkpoint, CheckpointStore, Found};
pub(crate) use store::{PartialCheckpoint, remove, sync};
