//! Asking a store that may never answer.

use std::sync::mpsc::channel;
use std::time::Duration;

use crate::error::{Error, Result};

/// How long after its time a store that does not answer is given up.
pub(super) const GRACE: Duration = Duration::from_secs(1);

/// Runs what asks the store in a thread of its own, which is left behind if it takes longer than `limit`: a store whose
/// process is stopped never answers.
pub(super) fn bounded<T: Send + 'static>(
    limit: Duration,
    ask: impl FnOnce() -> T + Send + 'static,
) -> Result<Option<T>> {
    let (sender, receiver) = channel();
    let spawned = std::thread::Builder::new()
        .name("store".to_owned())
        .spawn(move || {
            // Nobody listens any more after the limit.
            let _ = sender.send(ask());
        });
    spawned.map_err(|error| Error::Torch {
        op: "process_group",
        message: format!("cannot start a thread: {error}"),
    })?;
    Ok(receiver.recv_timeout(limit).ok())
}
