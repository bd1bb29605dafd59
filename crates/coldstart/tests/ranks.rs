//! Several ranks as threads: the same files as one, and one failure for all.

#![expect(
    clippy::unwrap_used,
    reason = "a failed step of a test is a failed test"
)]

mod small;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Barrier, Mutex};

use asyncthink_coldstart::{
    ColdstartSettings, Error, Exchange, ExchangeError, RankFailure, Result, SynthReport, run,
    run_with,
};
use asyncthink_data::SynthFolder;

fn settings(sets: &[&str]) -> ColdstartSettings {
    let own = [
        "task.mcd.num_train_problems=50",
        "synth.other_target_rate=0.3",
    ];
    ColdstartSettings::from_recipe(&small::recipe(&[&own[..], sets].concat())).unwrap()
}

/// Where threads put what they exchange.
struct Meeting {
    bytes: Mutex<Vec<Vec<u8>>>,
    failures: Mutex<Vec<Option<RankFailure>>>,
    barrier: Barrier,
}

/// What becomes of the bytes that a rank sends.
type Change = fn(Vec<u8>) -> Vec<u8>;

/// A rank that may change what it sends.
struct Thread<'a> {
    rank: usize,
    meeting: &'a Meeting,
    change: Change,
}

impl Exchange for Thread<'_> {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.meeting.bytes.lock().unwrap().len()
    }

    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, ExchangeError> {
        self.meeting.bytes.lock().unwrap()[self.rank] = (self.change)(bytes.to_vec());
        self.meeting.barrier.wait();
        let all = self.meeting.bytes.lock().unwrap().clone();
        self.meeting.barrier.wait();
        Ok(all)
    }

    fn first_failure(
        &self,
        own: Option<&RankFailure>,
    ) -> Result<Option<(usize, RankFailure)>, ExchangeError> {
        *self
            .meeting
            .failures
            .lock()
            .unwrap()
            .get_mut(self.rank)
            .unwrap() = own.cloned();
        self.meeting.barrier.wait();
        let all = self.meeting.failures.lock().unwrap().clone();
        self.meeting.barrier.wait();
        let mut failed = all.into_iter().enumerate();
        Ok(failed.find_map(|(rank, failure)| Some((rank, failure?))))
    }
}

/// Runs the stage by a rank per element; the last one sends what `change` makes of its bytes.
fn run_ranks(
    ranks: &[ColdstartSettings],
    directory: &Path,
    change: Change,
) -> Vec<Result<SynthReport>> {
    let meeting = Meeting {
        bytes: Mutex::new(vec![Vec::new(); ranks.len()]),
        failures: Mutex::new(vec![None; ranks.len()]),
        barrier: Barrier::new(ranks.len()),
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = ranks
            .iter()
            .enumerate()
            .map(|(rank, settings)| {
                let is_last = rank + 1 == ranks.len();
                let change = if is_last { change } else { |bytes| bytes };
                let meeting = &meeting;
                scope.spawn(move || {
                    let thread = Thread {
                        rank,
                        meeting,
                        change,
                    };
                    run_with(settings, directory, &thread, &mut |_| {})
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    })
}

/// Every file of the stage with its bytes.
fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let folder = SynthFolder::new(directory);
    let mut files = BTreeMap::new();
    for directory in [folder.root(), &folder.tokenizer()] {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                let name = path.strip_prefix(folder.root()).unwrap();
                let name = name.display().to_string();
                files.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    files
}

#[test]
fn files_are_the_same_with_any_number_of_ranks() {
    for sets in [
        &[][..],
        // Rules that refuse many, so that there are several rounds; and fewer problems than ranks.
        &["protocol.organizer_max_tokens=60", "synth.num_traces=700"],
        &["task.mcd.num_train_problems=2", "synth.num_traces=9"],
    ] {
        let settings = settings(sets);
        let alone = tempfile::tempdir().unwrap();
        let report = run(&settings, alone.path(), &mut |_| {}).unwrap();
        let is_picky = sets.contains(&"protocol.organizer_max_tokens=60");
        assert_eq!(
            report.rejected.values().sum::<u64>() > 64,
            is_picky,
            "{report:?}"
        );
        let expected = files(alone.path());
        assert!(expected.len() >= 6, "{:?}", expected.keys());
        for world_size in [2, 3, 5] {
            let directory = tempfile::tempdir().unwrap();
            let ranks = vec![settings.clone(); world_size];
            for result in run_ranks(&ranks, directory.path(), |bytes| bytes) {
                assert_eq!(result.unwrap(), report, "{world_size} ranks");
            }
            assert!(files(directory.path()) == expected, "{world_size} ranks");
            // The second call does nothing, on all ranks.
            for result in run_ranks(&ranks, directory.path(), |bytes| bytes) {
                assert!(result.unwrap().is_reused);
            }
        }
    }
}

#[test]
fn one_failure_is_that_of_all_ranks() {
    // The first rank's own.
    let directory = tempfile::tempdir().unwrap();
    let tight = settings(&["protocol.worker_max_tokens=4", "synth.num_traces=50"]);
    let mut results = run_ranks(&[tight.clone(), tight], directory.path(), |bytes| bytes);
    let (other, own) = (
        results.remove(1).unwrap_err(),
        results.remove(0).unwrap_err(),
    );
    assert!(
        matches!(own, Error::TooFewTraces { wanted: 50, .. }),
        "{own}"
    );
    assert_eq!(other.to_string(), format!("rank 0 failed: {own}"));
    assert!(own.is_input() && other.is_input());

    // Another rank's.
    let ranks = [settings(&[]), settings(&["seed=2"])];
    let mut results = run_ranks(&ranks, directory.path(), |bytes| bytes);
    let (own, other) = (
        results.remove(1).unwrap_err(),
        results.remove(0).unwrap_err(),
    );
    assert!(matches!(own, Error::RanksDiffer), "{own}");
    assert_eq!(other.to_string(), format!("rank 1 failed: {own}"));
    assert!(!SynthFolder::new(directory.path()).manifest().exists());
}

#[test]
fn candidates_that_do_not_fit_are_refused() {
    let changes: [(Change, &str); 3] = [
        (
            |bytes| replaced(bytes, r#""role":"worker""#, r#""role":"organizer""#),
            "not in order",
        ),
        (
            |bytes| replaced(bytes, r#""pairs""#, r#""pears""#),
            "unknown field",
        ),
        (only_the_first, "candidates are missing"),
    ];
    for (change, reason) in changes {
        let directory = tempfile::tempdir().unwrap();
        let ranks = vec![settings(&[]); 2];
        let mut results = run_ranks(&ranks, directory.path(), change);
        let (other, own) = (
            results.remove(1).unwrap_err(),
            results.remove(0).unwrap_err(),
        );
        assert!(
            matches!(own, Error::InvalidMessage { rank: 1, .. }),
            "{own}"
        );
        assert!(own.to_string().contains(reason), "{own}");
        assert_eq!(other.to_string(), format!("rank 0 failed: {own}"));
        assert!(!SynthFolder::new(directory.path()).manifest().exists());
    }
}

fn replaced(bytes: Vec<u8>, from: &str, to: &str) -> Vec<u8> {
    let text = String::from_utf8(bytes).unwrap();
    text.replace(from, to).into_bytes()
}

/// Cuts a list of candidates to one.
fn only_the_first(bytes: Vec<u8>) -> Vec<u8> {
    let text = String::from_utf8(bytes).unwrap();
    match text.split_once("},{\"Ok\"") {
        Some((first, _)) => format!("{first}}}]").into_bytes(),
        None => text.into_bytes(),
    }
}
