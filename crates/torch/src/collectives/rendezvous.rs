//! How the ranks of one attempt find each other on a store that may hold what earlier attempts left.
//!
//! The first rank makes up a name for the group. Every other rank announces itself with a number of its own that nobody
//! has used before, and takes the name that is given in answer to that number. It acknowledges the name; when all have,
//! the first rank says so. Whatever an earlier attempt wrote is under other numbers and other names, so it is never
//! taken for an answer, and nobody needs to count attempts.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::time::{Duration, Instant};

use super::failure::Suspect;
use super::store::Store;
use crate::error::{Error, Result};

/// Time between two looks at the store, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Time in which a rank that waits too announces itself again, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(2);

/// Result of a meeting.
#[derive(Debug)]
pub(super) enum Meeting {
    /// All came; the name that they agreed on, new on this store.
    Complete(String),
    /// Some did not come in time.
    Missing(Vec<Suspect>),
}

/// Meets the other ranks on `store`.
///
/// # Errors
/// A store that is gone; a second process with the number of this rank.
pub(super) fn meet(
    store: &Store,
    rank: usize,
    world_size: usize,
    timeout: Duration,
) -> Result<Meeting> {
    let place = Place {
        store,
        rank,
        world_size,
    };
    let own = nonce();
    let deadline = Instant::now() + timeout;
    let mut seen_before = None;
    let mut names = Vec::new();
    let mut waited_for: Vec<usize> = (1..world_size).collect();
    let mut pause = FIRST_PAUSE;
    for beat in 0_u64.. {
        // Written again at every look: it shows that this rank waits, and replaces what a lost one may have written since.
        store.set(&hello(rank), format!("{own} {beat}").as_bytes())?;
        let name = if rank == 0 {
            place.answer(&own, &mut waited_for)?
        } else {
            place.ask(&own, &mut names)?
        };
        if let Some(name) = name {
            return Ok(Meeting::Complete(name));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if seen_before.is_none() && left <= PATIENCE.min(timeout / 2) {
            seen_before = Some(place.announcements()?);
        }
        if left.is_zero() {
            break;
        }
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    let seen_now = place.announcements()?;
    let seen_before = seen_before.unwrap_or_default();
    let missing = seen_now.iter().zip(&seen_before).enumerate();
    let missing = missing.filter(|(other, (now, before))| *other != rank && now == before);
    let mut missing: Vec<usize> = missing.map(|(other, _)| other).collect();
    if missing.is_empty() && rank == 0 {
        // All are there and some have not taken the name yet.
        missing = waited_for;
    }
    Ok(Meeting::Missing(
        missing.into_iter().map(Suspect::missing).collect(),
    ))
}

struct Place<'a> {
    store: &'a Store,
    rank: usize,
    world_size: usize,
}

impl Place<'_> {
    /// The first rank's part of a look: gives every rank in `waited_for` the name, and takes out those that have it.
    fn answer(&self, name: &str, waited_for: &mut Vec<usize>) -> Result<Option<String>> {
        let mut waiting = Vec::new();
        for &rank in waited_for.iter() {
            if self.store.has(&[&acknowledged(name, rank)])? {
                continue;
            }
            waiting.push(rank);
            // Given again until it is acknowledged: a first rank that was lost may have answered too.
            if let Some(nonce) = self.announced(rank)? {
                self.store.set(&welcome(rank, &nonce), name.as_bytes())?;
            }
        }
        *waited_for = waiting;
        if !waited_for.is_empty() {
            return Ok(None);
        }
        self.store.set(&complete(name), b"")?;
        Ok(Some(name.to_owned()))
    }

    /// Another rank's part of a look: acknowledges the name that it is given, and learns whether all have.
    fn ask(&self, own: &str, names: &mut Vec<String>) -> Result<Option<String>> {
        if let Some(name) = self.read(&welcome(self.rank, own))?
            && !names.contains(&name)
        {
            if self.store.add(&acknowledged(&name, self.rank), 1)? > 1 {
                return Err(Error::Argument {
                    op: "process_group",
                    argument: "rank",
                    expected: "one that no other process of the group has".to_owned(),
                    got: self.rank.to_string(),
                });
            }
            names.push(name);
        }
        for name in names.iter() {
            if self.store.has(&[&complete(name)])? {
                return Ok(Some(name.clone()));
            }
        }
        Ok(None)
    }

    fn announced(&self, rank: usize) -> Result<Option<String>> {
        let value = self.read(&hello(rank))?;
        Ok(value.and_then(|value| Some(value.split(' ').next()?.to_owned())))
    }

    /// Last announcement of every rank.
    fn announcements(&self) -> Result<Vec<Option<String>>> {
        let ranks = 0..self.world_size;
        ranks.map(|rank| self.read(&hello(rank))).collect()
    }

    fn read(&self, key: &str) -> Result<Option<String>> {
        if !self.store.has(&[key])? {
            return Ok(None);
        }
        let value = self.store.get(key, PATIENCE)?;
        Ok(Some(String::from_utf8_lossy(&value).into_owned()))
    }
}

fn hello(rank: usize) -> String {
    format!("hello/{rank}")
}

fn welcome(rank: usize, nonce: &str) -> String {
    format!("welcome/{rank}/{nonce}")
}

fn acknowledged(name: &str, rank: usize) -> String {
    format!("acknowledged/{name}/{rank}")
}

fn complete(name: &str) -> String {
    format!("complete/{name}")
}

/// A number that no other process and no other call makes: the standard library's random keys, the time and the process.
fn nonce() -> String {
    let random = || RandomState::new().build_hasher().finish();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let nanos = now.map_or(0, |now| now.as_nanos());
    format!("{:016x}{nanos:x}-{}", random(), std::process::id())
}

#[cfg(test)]
mod tests {
    use super::super::store::StoreOptions;
    use super::*;

    const LONG: Duration = Duration::from_mins(1);

    fn serve() -> Store {
        Store::serve("127.0.0.1", 0, &StoreOptions::default()).unwrap()
    }

    /// Starts a rank with a connection of its own.
    fn start(
        store: &Store,
        rank: usize,
        world_size: usize,
        timeout: Duration,
    ) -> std::thread::JoinHandle<Result<Meeting>> {
        let store = store.try_clone().unwrap();
        std::thread::spawn(move || meet(&store, rank, world_size, timeout))
    }

    fn name_of(meeting: Meeting) -> String {
        match meeting {
            Meeting::Complete(name) => name,
            Meeting::Missing(missing) => panic!("{missing:?} are missing"),
        }
    }

    fn all_meet(store: &Store, world_size: usize) -> String {
        let ranks: Vec<_> = (0..world_size)
            .map(|rank| start(store, rank, world_size, LONG))
            .collect();
        let names: Vec<String> = ranks
            .into_iter()
            .map(|rank| name_of(rank.join().unwrap().unwrap()))
            .collect();
        assert!(names.iter().all(|name| *name == names[0]), "{names:?}");
        names[0].clone()
    }

    #[test]
    fn every_meeting_on_one_store_has_a_name_of_its_own() {
        let store = serve();
        let first = all_meet(&store, 3);
        let second = all_meet(&store, 3);
        assert_ne!(first, second);
    }

    #[test]
    fn what_lost_ranks_left_is_never_taken_for_an_answer() {
        let store = serve();
        // Any part of an attempt may be left: ranks that nobody answered, and a first rank that met some of them.
        for lost in [&[1][..], &[2], &[0], &[0, 1], &[0, 2], &[1, 2]] {
            let ranks: Vec<_> = lost
                .iter()
                .map(|&rank| start(&store, rank, 3, Duration::from_millis(100)))
                .collect();
            for rank in ranks {
                let meeting = rank.join().unwrap().unwrap();
                assert!(matches!(meeting, Meeting::Missing(_)), "{meeting:?}");
            }
            all_meet(&store, 3);
        }
    }

    #[test]
    fn a_rank_that_is_lost_while_others_wait_can_be_replaced() {
        let store = serve();
        store.set(&hello(1), b"lost 0").unwrap();
        let waiting = [0, 2].map(|rank| start(&store, rank, 3, LONG));
        // The first rank has answered the lost one.
        store.get(&welcome(1, "lost"), LONG).unwrap();
        let replaced = start(&store, 1, 3, LONG);
        let names = waiting.map(|rank| name_of(rank.join().unwrap().unwrap()));
        assert_eq!(names[0], names[1]);
        assert_eq!(name_of(replaced.join().unwrap().unwrap()), names[0]);
    }

    #[test]
    fn who_did_not_come_is_named_whatever_was_left_of_it() {
        let store = serve();
        all_meet(&store, 3);
        let waiting = [2, 0].map(|rank| start(&store, rank, 3, Duration::from_secs(5)));
        for rank in waiting {
            let Meeting::Missing(missing) = rank.join().unwrap().unwrap() else {
                panic!("rank 1 is not there");
            };
            assert_eq!(missing, [Suspect::missing(1)]);
        }
    }
}
