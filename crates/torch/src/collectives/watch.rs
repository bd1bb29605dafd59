//! Signs of life: every rank writes into the store how far it is, and reads what the others wrote when it fails.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::failure::{Suspect, SuspectReason};
use super::flight::Flight;
use super::store::Store;
use crate::error::Result;

/// Time between two signs of life.
const INTERVAL: Duration = Duration::from_millis(500);

/// Time in which a rank that lives gives a sign, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(2);

/// Longest time that asking the store may take; a store whose process is stopped never answers.
const ANSWER: Duration = Duration::from_secs(5);

/// Time between two looks at whether the store still answers.
const ASKING: Duration = Duration::from_millis(100);

/// A thread that writes this rank's signs of life until it is dropped.
pub(super) struct Watch {
    signal: Arc<(Mutex<Signal>, Condvar)>,
    thread: Option<JoinHandle<()>>,
    /// Another rank whose process serves the store: when it is lost, the store cannot be asked for its last sign.
    store_rank: Option<usize>,
}

#[derive(Default)]
struct Signal {
    /// The thread shall end.
    stop: bool,
    /// There is news that shall not wait for the next interval.
    news: bool,
    /// The thread has ended.
    ended: bool,
    /// When the thread asked the store for what it has not answered yet.
    waiting_since: Option<Instant>,
    /// The last sign of the rank that serves the store.
    store_sign: Option<Sign>,
}

impl Signal {
    /// Whether the store has not answered for so long that its process must be stopped, or cut off.
    fn is_unanswered(&self) -> bool {
        self.waiting_since
            .is_some_and(|since| since.elapsed() > PATIENCE)
    }
}

impl Watch {
    pub(super) fn start(
        store: Store,
        rank: usize,
        store_rank: Option<usize>,
        flight: Arc<Mutex<Flight>>,
    ) -> std::io::Result<Self> {
        let store_rank = store_rank.filter(|other| *other != rank);
        let signal = Arc::new((Mutex::new(Signal::default()), Condvar::new()));
        let thread = std::thread::Builder::new()
            .name("signs of life".to_owned())
            .spawn({
                let signal = Arc::clone(&signal);
                move || {
                    write_signs(&store, rank, store_rank, &flight, &signal);
                    lock(&signal.0).ended = true;
                    signal.1.notify_all();
                }
            })?;
        Ok(Watch {
            signal,
            thread: Some(thread),
            store_rank,
        })
    }

    /// The rank that serves the store as a suspect, with its last sign of life; nothing where it is this one or none.
    pub(super) fn store_rank_as_suspect(&self) -> Option<Suspect> {
        let rank = self.store_rank?;
        let sign = lock(&self.signal.0).store_sign.clone();
        Some(Suspect {
            rank,
            reason: SuspectReason::Silent,
            sequence: sign.as_ref().map_or(0, |sign| sign.sequence),
            phase: sign.map(|sign| sign.phase).unwrap_or_default(),
        })
    }

    /// Lets the thread write now.
    pub(super) fn tell(&self) {
        lock(&self.signal.0).news = true;
        self.signal.1.notify_all();
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let (signal, condition) = &*self.signal;
        let mut guard = lock(signal);
        guard.stop = true;
        condition.notify_all();
        // A thread that waits for a stopped store would be waited for without end.
        let (guard, _) = condition
            .wait_timeout_while(guard, PATIENCE, |signal| {
                !signal.ended && !signal.is_unanswered()
            })
            .unwrap_or_else(PoisonError::into_inner);
        let ended = guard.ended;
        drop(guard);
        if let (Some(thread), true) = (self.thread.take(), ended) {
            let _ = thread.join();
        }
    }
}

fn write_signs(
    store: &Store,
    rank: usize,
    store_rank: Option<usize>,
    flight: &Mutex<Flight>,
    (signal, condition): &(Mutex<Signal>, Condvar),
) {
    for beat in 0_u64.. {
        let sign = {
            let flight = lock(flight);
            format!("{beat} {} {}", flight.sequence(), flight.phase())
        };
        lock(signal).waiting_since = Some(Instant::now());
        let asked = store.set(&key(rank), sign.as_bytes());
        let asked = asked.and_then(|()| match store_rank {
            Some(other) => read_sign(store, other),
            None => Ok(None),
        });
        let mut guard = lock(signal);
        guard.waiting_since = None;
        // A store that is gone is noticed by whoever reads it.
        let Ok(sign) = asked else {
            return;
        };
        guard.store_sign = sign.or(guard.store_sign.take());
        let (mut guard, _) = condition
            .wait_timeout_while(guard, INTERVAL, |signal| !signal.stop && !signal.news)
            .unwrap_or_else(PoisonError::into_inner);
        if guard.stop {
            return;
        }
        guard.news = false;
    }
}

/// One rank's last sign.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sign {
    beat: u64,
    sequence: u64,
    phase: String,
}

impl Sign {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, ' ');
        Some(Sign {
            beat: parts.next()?.parse().ok()?,
            sequence: parts.next()?.parse().ok()?,
            phase: parts.next()?.to_owned(),
        })
    }
}

/// The other ranks that are silent or have not started collective `sequence`; nothing if the store does not answer.
pub(super) fn suspects(
    watch: &Watch,
    store: &Arc<Store>,
    rank: usize,
    world_size: usize,
    sequence: u64,
) -> Option<Vec<Suspect>> {
    let (answer, answered) = channel();
    let store = Arc::clone(store);
    // Left behind if the store does not answer.
    std::thread::Builder::new()
        .name("signs of life".to_owned())
        .spawn(move || {
            let earlier = read_signs(&store, world_size);
            std::thread::sleep(PATIENCE);
            let later = read_signs(&store, world_size);
            // Nobody listens any more after `ANSWER`.
            let _ = answer.send(earlier.zip(later));
        })
        .ok()?;
    let began = Instant::now();
    while began.elapsed() < PATIENCE + ANSWER && !lock(&watch.signal.0).is_unanswered() {
        match answered.recv_timeout(ASKING) {
            Ok(signs) => {
                let (earlier, later) = signs?;
                return Some(compare(rank, sequence, &earlier, &later));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
    None
}

fn read_signs(store: &Store, world_size: usize) -> Option<Vec<Option<Sign>>> {
    (0..world_size)
        .map(|rank| read_sign(store, rank).ok())
        .collect()
}

fn read_sign(store: &Store, rank: usize) -> Result<Option<Sign>> {
    let key = key(rank);
    if !store.has(&[&key])? {
        return Ok(None);
    }
    let value = store.get(&key, ANSWER)?;
    Ok(Sign::parse(&String::from_utf8_lossy(&value)))
}

fn compare(
    own_rank: usize,
    sequence: u64,
    earlier: &[Option<Sign>],
    later: &[Option<Sign>],
) -> Vec<Suspect> {
    let mut suspects = Vec::new();
    for (rank, (earlier, later)) in earlier.iter().zip(later).enumerate() {
        let last = later.as_ref();
        let reason = if earlier.as_ref().map(|sign| sign.beat) == last.map(|sign| sign.beat) {
            SuspectReason::Silent
        } else if last.is_some_and(|sign| sign.sequence < sequence) {
            SuspectReason::Behind
        } else {
            continue;
        };
        if rank != own_rank {
            suspects.push(Suspect {
                rank,
                reason,
                sequence: last.map_or(0, |sign| sign.sequence),
                phase: last.map(|sign| sign.phase.clone()).unwrap_or_default(),
            });
        }
    }
    suspects
}

fn key(rank: usize) -> String {
    format!("progress/{rank}")
}

/// Locks whatever happened to other holders: what is kept here is whole after every statement.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sign(text: &str) -> Option<Sign> {
        Sign::parse(text)
    }

    #[test]
    fn the_silent_and_the_late_are_told_apart() {
        let earlier = [
            sign("5 9 step 2: reduce"),
            sign("4 9 step 2: reduce"),
            sign("4 8 step 1: rollout"),
            sign("7 8 step 1: rollout"),
            None,
        ];
        let later = [
            sign("9 9 step 2: reduce"),
            sign("8 9 step 2: reduce"),
            sign("8 8 step 1: rollout"),
            sign("7 8 step 1: rollout"),
            None,
        ];
        let suspects = compare(0, 9, &earlier, &later);
        let texts: Vec<String> = suspects.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "rank 2 is behind at collective 8 in `step 1: rollout`",
                "rank 3 gives no sign of life, last seen at collective 8 in `step 1: rollout`",
                "rank 4 gives no sign of life, last seen at collective 0",
            ]
        );
        assert!(compare(0, 8, &earlier[..3], &later[..3]).is_empty());
    }

    #[test]
    fn signs_are_written_until_the_watch_ends() {
        let store = Store::serve("127.0.0.1", 0, &super::super::StoreOptions::default()).unwrap();
        let flight = Arc::new(Mutex::new(Flight::default()));
        let read = |store: &Store| {
            let value = store.get(&key(3), ANSWER).unwrap();
            sign(std::str::from_utf8(&value).unwrap()).unwrap()
        };
        let watch = Watch::start(store.try_clone().unwrap(), 3, None, Arc::clone(&flight)).unwrap();
        assert_eq!(
            (read(&store).sequence, read(&store).phase.as_str()),
            (0, "")
        );
        lock(&flight).set_phase("grpo step 1: rollout".to_owned());
        watch.tell();
        let told = std::time::Instant::now();
        while read(&store).phase.is_empty() && told.elapsed() < ANSWER {}
        assert_eq!(read(&store).phase, "grpo step 1: rollout");
        drop(watch);
        let last = read(&store);
        std::thread::sleep(2 * INTERVAL);
        assert_eq!(read(&store), last);
    }
}
