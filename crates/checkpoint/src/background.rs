//! Work in a thread of its own, while training goes on.

use std::thread::{Builder, JoinHandle};

use crate::error::Error;

/// A write under way. Dropping it waits for its end: a folder is not let go of while something writes into it.
#[derive(Debug)]
pub struct Task<E> {
    thread: Option<JoinHandle<Result<(), E>>>,
    result: Result<(), E>,
}

impl<E: From<Error> + Send + 'static> Task<E> {
    /// Begins in a thread.
    pub fn start(work: impl FnOnce() -> Result<(), E> + Send + 'static) -> Self {
        match Builder::new().name("checkpoint".to_owned()).spawn(work) {
            Ok(thread) => Self {
                thread: Some(thread),
                result: Ok(()),
            },
            Err(error) => {
                let context = "starting a thread to write a checkpoint";
                Self::done(Err(Error::stage(context, error).into()))
            }
        }
    }

    /// A task that is done already.
    pub fn done(result: Result<(), E>) -> Self {
        Self {
            thread: None,
            result,
        }
    }

    /// Whether [`Task::wait`] would not wait.
    pub fn is_done(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// The error of the work, or that of a thread that panicked.
    pub fn wait(mut self) -> Result<(), E> {
        match self.thread.take() {
            Some(thread) => thread.join().unwrap_or_else(|_| {
                Err(Error::stage("writing a checkpoint", "its thread panicked").into())
            }),
            None => std::mem::replace(&mut self.result, Ok(())),
        }
    }
}

impl<E> Drop for Task<E> {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // Whoever wants the result waits for it.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_task_ends_with_its_result() {
        let (sender, receiver) = channel::<()>();
        let task = Task::<Error>::start(move || {
            let _ = receiver.recv();
            Err(Error::stage("a", "b"))
        });
        assert!(!task.is_done());
        sender.send(()).unwrap();
        assert_eq!(task.wait().unwrap_err().to_string(), "a: b");
        let done = Task::<Error>::done(Ok(()));
        assert!(done.is_done());
        assert!(done.wait().is_ok());
    }

    #[test]
    fn whoever_drops_a_task_waits_for_it() {
        let (sender, receiver) = channel::<()>();
        let is_over = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&is_over);
        let task = Task::<Error>::start(move || {
            let _ = receiver.recv();
            std::thread::yield_now();
            flag.store(true, Ordering::SeqCst);
            Ok(())
        });
        sender.send(()).unwrap();
        drop(task);
        assert!(is_over.load(Ordering::SeqCst));
    }
}
