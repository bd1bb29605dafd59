//! Ranks that do not come, stall or die.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tch::{Device, Kind};

use super::{HOST, LONG, given, join, options, serve, values, world};
use crate::collectives::{
    GroupOptions, ProcessGroup, Reduction, Store, StoreOptions, SuspectReason,
};
use crate::error::Error;

/// Enough for ranks that come, and soon over for those that do not.
const SHORT: Duration = Duration::from_secs(2);

/// Reporting takes some time beyond the timeout.
const REPORT: Duration = Duration::from_secs(30);

#[test]
fn ranks_that_never_join_are_named() {
    let store = serve();
    let start = Instant::now();
    let error = ProcessGroup::new(&store, Device::Cpu, &options(1, 4, SHORT)).unwrap_err();
    assert!(start.elapsed() < SHORT + REPORT);
    assert_eq!(
        error.to_string(),
        "`join` timed out after 2s on rank 1 of 4 in `world: joining the ranks` (collective 1): not all ranks came; \
         rank 0 did not come; rank 2 did not come; rank 3 did not come"
    );
}

#[test]
fn a_group_forms_where_an_earlier_one_was_lost() {
    let store = serve();
    let port = store.port();
    // A name that nobody counts up, as under a launcher that restarts ranks without counting: whole attempts and parts of one.
    for _ in 0..2 {
        ProcessGroup::new(&store, Device::Cpu, &options(1, 2, SHORT / 10)).unwrap_err();
        let sums = std::thread::scope(|scope| {
            let ranks = [0, 1].map(|rank| {
                scope.spawn(move || {
                    let group = join(port, rank, 2, LONG);
                    let mut tensor = given(rank, 3, Kind::Float);
                    let work = group.all_reduce(&mut tensor, Reduction::Sum).unwrap();
                    work.wait().unwrap();
                    group.monitored_barrier().unwrap();
                    values(&tensor)
                })
            });
            ranks.map(|rank| rank.join().unwrap())
        });
        assert_eq!(sums, [[7.0, 13.0, 8.0], [7.0, 13.0, 8.0]]);
    }
}

#[test]
fn a_monitored_barrier_names_who_did_not_come_on_every_rank() {
    let errors = world(3, LONG, |group| {
        for _ in 0..3 {
            group.monitored_barrier().unwrap();
        }
        if group.rank() == 1 {
            // Stays alive meanwhile.
            std::thread::sleep(2 * SHORT);
            return None;
        }
        group.set_phase("sft step 3: save");
        let group = group.within(SHORT);
        let error = group.monitored_barrier().unwrap_err();
        let mut tensor = given(0, 2, Kind::Float);
        let later = group.all_reduce(&mut tensor, Reduction::Sum).unwrap_err();
        assert_eq!(
            later.to_string(),
            error.to_string(),
            "the group stays failed"
        );
        Some(error)
    });
    for (rank, error) in errors.iter().enumerate() {
        let Some(error) = error else { continue };
        let expected = format!(
            "`monitored_barrier` timed out after 2s on rank {rank} of 3 in `sft step 3: save` (collective 5): \
             not all ranks came; rank 1 did not come"
        );
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn a_stalled_rank_fails_the_operation_in_time_and_is_named() {
    let errors = world(2, LONG, |group| {
        group.barrier().unwrap();
        if group.rank() == 1 {
            group.set_phase("grpo step 4: rollout");
            std::thread::sleep(3 * SHORT);
            return None;
        }
        group.set_phase("grpo step 4: reduce gradients");
        let start = Instant::now();
        let mut tensor = given(0, 100, Kind::Float);
        let work = group
            .within(SHORT)
            .all_reduce(&mut tensor, Reduction::Sum)
            .unwrap();
        let error = work.wait().unwrap_err();
        assert!(start.elapsed() < SHORT + REPORT);
        Some(error)
    });
    let error = errors[0].as_ref().unwrap();
    let text = error.to_string();
    let head = "`all_reduce` timed out after 2s on rank 0 of 2 in `grpo step 4: reduce gradients` \
                (collective 3, 400 bytes): ";
    assert!(text.starts_with(head), "{text}");
    assert!(text.contains("Timed out waiting"), "c10d's words: {text}");
    let tail = "; rank 1 is behind at collective 2 in `grpo step 4: rollout`";
    assert!(text.ends_with(tail), "{text}");
    let Error::CollectiveTimeout(failure) = error else {
        panic!("{error}")
    };
    assert_eq!((failure.op(), failure.rank), ("all_reduce", 0));
    assert_eq!(failure.suspects[0].reason, SuspectReason::Behind);
}

const PORT: &str = "ASYNCTHINK_TEST_PORT";
const RANK: &str = "ASYNCTHINK_TEST_RANK";
const SERVES: &str = "ASYNCTHINK_TEST_SERVES";
const WORLD_SIZE: usize = 3;

/// A rank of the tests below: says that it is ready, waits for a line, and goes on without end.
#[test]
fn rank_of_a_world_of_processes() {
    let (Ok(port), Ok(rank)) = (std::env::var(PORT), std::env::var(RANK)) else {
        return;
    };
    let rank = rank.parse().unwrap();
    let group = join(port.parse().unwrap(), rank, WORLD_SIZE, LONG);
    group.set_phase("grpo step 9: reduce gradients");
    let mut tensor = given(rank, 1000, Kind::Float);
    let error = loop {
        group.barrier().unwrap();
        println!("ready");
        std::io::stdout().flush().unwrap();
        if rank == WORLD_SIZE - 1 {
            std::thread::sleep(LONG);
        }
        // The last rank is dead or stopped by now.
        std::io::stdin().read_line(&mut String::new()).unwrap();
        let work = group
            .within(SHORT)
            .all_reduce(&mut tensor, Reduction::Sum)
            .unwrap();
        if let Err(error) = work.wait() {
            break error;
        }
    };
    let kind = match error {
        Error::CollectiveTimeout(_) => "timeout",
        Error::PeerLost(_) => "peer lost",
        _ => "other",
    };
    println!("{kind}: {error}");
}

/// The first rank of the tests below: serves the store, and joins unless it is stopped before.
#[test]
fn first_rank_that_serves_the_store() {
    if std::env::var(SERVES).is_err() {
        return;
    }
    let store = serve();
    println!("port {}", store.port());
    std::io::stdout().flush().unwrap();
    std::io::stdin().read_line(&mut String::new()).unwrap();
    let options = GroupOptions {
        store_rank: Some(0),
        ..options(0, 2, LONG)
    };
    let group = ProcessGroup::new(&store, Device::Cpu, &options).unwrap();
    group.set_phase("sft step 3: saving");
    group.barrier().unwrap();
    std::thread::sleep(LONG);
}

#[test]
fn a_stopped_first_rank_that_serves_the_store_is_named() {
    let options = GroupOptions {
        store_rank: Some(0),
        ..options(1, 2, SHORT)
    };
    let connect = |port, timeout| {
        let options = StoreOptions {
            timeout,
            ..StoreOptions::default()
        };
        Store::connect(HOST, port, &options)
    };
    let start_first = || {
        let mut command = Rank::command("first_rank_that_serves_the_store");
        let mut first = Rank::spawn(command.env(SERVES, ""));
        let line = first.line(&["port "]);
        let (_, port) = line.rsplit_once(' ').unwrap();
        (first, port.parse().unwrap())
    };

    // While the other rank works.
    let (mut first, port) = start_first();
    first
        .child
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"go\n")
        .unwrap();
    let group = ProcessGroup::new(&connect(port, LONG).unwrap(), Device::Cpu, &options).unwrap();
    group.within(LONG).barrier().unwrap();
    // The heartbeat comes twice a second.
    std::thread::sleep(SHORT);
    first.signal("STOP");
    let mut tensor = given(0, 4, Kind::Float);
    let work = group.all_reduce(&mut tensor, Reduction::Sum).unwrap();
    let text = work.wait().unwrap_err().to_string();
    let tail = format!(
        "; the store at `{HOST}:{port}` does not answer; rank 0 gives no sign of life, last seen at collective 2 in \
         `sft step 3: saving`"
    );
    assert!(text.ends_with(&tail), "{text}");
    let head = "`all_reduce` timed out after 2s on rank 1 of 2 in `world: joining the ranks` (collective 3, 16 bytes): ";
    assert!(text.starts_with(head), "{text}");

    // While it joins.
    let (first, port) = start_first();
    let store = connect(port, LONG).unwrap();
    first.signal("STOP");
    let error = ProcessGroup::new(&store, Device::Cpu, &options).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "`join` timed out after 2s on rank 1 of 2 in `world: joining the ranks` (collective 1): the store at \
             `{HOST}:{port}` does not answer; rank 0 gives no sign of life, last seen at collective 1 in \
             `world: joining the ranks`"
        )
    );

    // Before anybody has connected.
    let error = connect(port, SHORT).unwrap_err();
    assert!(matches!(error, Error::StoreTimeout { .. }), "{error}");
}

struct Rank {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Rank {
    fn start(port: u16, rank: usize) -> Self {
        let mut command = Self::command("rank_of_a_world_of_processes");
        command.env(PORT, port.to_string());
        Self::spawn(command.env(RANK, rank.to_string()))
    }

    /// Runs one of the tests above as a process.
    fn command(test: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let name = format!("collectives::tests::failures::{test}");
        command.args(["--exact", &name, "--nocapture"]);
        command
    }

    fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Rank { child, lines }
    }

    fn line(&mut self, contains: &[&str]) -> String {
        let lines = self.lines.by_ref().map(Result::unwrap);
        let mut found = lines.filter(|line| contains.iter().any(|part| line.contains(part)));
        found.next().expect("the rank says so")
    }

    fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        let status = Command::new("sh").args(["-c", &kill]).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends the last of three ranks a signal and gives the errors of the others.
fn errors_after(signal: &str) -> Vec<String> {
    let store = serve();
    let mut ranks: Vec<Rank> = (0..WORLD_SIZE)
        .map(|rank| Rank::start(store.port(), rank))
        .collect();
    for rank in &mut ranks {
        rank.line(&["ready"]);
    }
    let last = ranks.pop().unwrap();
    last.signal(signal);
    for rank in &mut ranks {
        let stdin = rank.child.stdin.as_mut().unwrap();
        stdin.write_all(b"go\n").unwrap();
    }
    let start = Instant::now();
    let errors = ranks
        .iter_mut()
        .map(|rank| rank.line(&["timeout: ", "peer lost: ", "other: "]))
        .collect();
    assert!(start.elapsed() < SHORT + REPORT);
    errors
}

#[test]
fn a_killed_rank_is_an_error_that_names_it() {
    for (rank, error) in errors_after("KILL").iter().enumerate() {
        let expected = format!(
            "on rank {rank} of 3 in `grpo step 9: reduce gradients` (collective 3, 4000 bytes): "
        );
        assert!(error.contains(&expected), "{error}");
        assert!(
            error.contains("peer lost: `all_reduce` lost a rank")
                || error.contains("timeout: `all_reduce` timed out after 2s"),
            "{error}"
        );
        // Which collective was told last depends on the moment.
        let silent = "; rank 2 gives no sign of life, last seen at collective ";
        assert!(error.contains(silent), "{error}");
    }
}

#[test]
fn a_stopped_rank_is_an_error_that_names_it() {
    let errors = errors_after("STOP");
    assert!(
        errors
            .iter()
            .any(|error| error.contains("timeout: `all_reduce` timed out after 2s")),
        "{errors:?}"
    );
    for error in &errors {
        assert!(
            error.contains("; rank 2 gives no sign of life, last seen at collective "),
            "{error}"
        );
    }
}

#[test]
fn a_store_that_is_gone_is_said() {
    let server = serve();
    let port = server.port();
    let texts = std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..2)
            .map(|rank| {
                scope.spawn(move || {
                    let group = join(port, rank, 2, LONG);
                    group.barrier().unwrap();
                    group
                })
            })
            .collect();
        let groups: Vec<ProcessGroup> =
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect();
        drop(server);
        let error = groups[0].monitored_barrier().unwrap_err().to_string();
        let mut tensor = given(0, 4, Kind::Float);
        let work = groups[0]
            .within(SHORT)
            .all_reduce(&mut tensor, Reduction::Sum)
            .unwrap();
        [error, work.wait().unwrap_err().to_string()]
    });
    let [barrier, reduce] = texts;
    assert!(
        barrier.contains(&format!("on the store at `{HOST}:{port}`")),
        "{barrier}"
    );
    let tail = format!("; the store at `{HOST}:{port}` does not answer");
    assert!(reduce.ends_with(&tail), "{reduce}");
}
