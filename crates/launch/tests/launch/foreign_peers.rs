//! A launcher whose counterpart is lost, silent, or something else.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use asyncthink_launch::{Error, Failure, Outcome};

use crate::support::{Folder, Place, Setup};

/// A second node that says what it must to be taken, and nothing more.
struct SecondNode {
    stream: TcpStream,
    orders: BufReader<TcpStream>,
}

impl SecondNode {
    fn join(place: &Place) -> Self {
        let mut stream = TcpStream::connect((place.endpoint.host(), place.endpoint.port()))
            .expect("a connection");
        let version = env!("CARGO_PKG_VERSION");
        let hello = format!(
            r#"{{"protocol": "asyncthink-launch", "version": 1, "program_version": "{version}", "run_id": "test", "num_nodes": 2, "node_rank": 1, "num_local_ranks": 1, "host": "there"}}"#
        );
        writeln!(stream, "{hello}").expect("sent");
        let orders = BufReader::new(stream.try_clone().expect("a connection"));
        Self { stream, orders }
    }

    /// Reads orders up to one that contains a word.
    fn wait_for(&mut self, word: &str) {
        let mut line = String::new();
        while !line.contains(word) {
            line.clear();
            let num = self.orders.read_line(&mut line).expect("an order");
            assert!(num > 0, "no {word}");
        }
    }
}

/// The reason for which node 1 counts as lost.
fn lost(outcome: Outcome) -> String {
    let Outcome::Failed(report) = outcome else {
        panic!("no failure: {outcome:?}");
    };
    match report.root {
        Failure::Node { host, reason, .. } => {
            assert_eq!(host, "there");
            reason
        }
        other => panic!("{other}"),
    }
}

const WAIT: &str = "while :; do sleep 0.01; done";

#[test]
fn a_node_that_goes_away_is_a_failure() {
    let folder = Folder::new();
    let mut place = Place::new(2);
    let first = Setup::new(1, WAIT, &folder).first_node(&mut place).start();
    let mut second = SecondNode::join(&place);
    second.wait_for("start");
    drop(second);
    assert_eq!(lost(first.wait().outcome()), "it closed the connection");
}

#[test]
fn a_node_that_falls_silent_is_a_failure() {
    let folder = Folder::new();
    let mut place = Place::new(2);
    let mut first = Setup::new(1, WAIT, &folder).first_node(&mut place);
    first.timing.heartbeat = Duration::from_millis(300);
    let first = first.start();
    let mut second = SecondNode::join(&place);
    second.wait_for("start");
    let reason = lost(first.wait().outcome());
    assert_eq!(reason, "nothing was heard of it for too long");
    drop(second);
}

#[test]
fn a_node_that_sends_malformed_lines_is_a_failure() {
    let folder = Folder::new();
    let mut place = Place::new(2);
    let first = Setup::new(1, WAIT, &folder).first_node(&mut place).start();
    let mut second = SecondNode::join(&place);
    second.wait_for("start");
    writeln!(second.stream, "[1, 2]").expect("sent");
    let reason = lost(first.wait().outcome());
    assert!(reason.contains("cannot be read"), "{reason}");
}

#[test]
fn a_node_that_was_lost_may_come_again() {
    let folder = Folder::new();
    let script = "[ $TORCHELASTIC_RESTART_COUNT = 1 ] || while :; do sleep 0.01; done";
    let mut place = Place::new(2);
    let first = Setup::new(1, script, &folder)
        .max_restarts(1)
        .first_node(&mut place)
        .start();
    let mut second = SecondNode::join(&place);
    second.wait_for("start");
    drop(second);
    // Until node 0 has noticed, the place is taken.
    let second = loop {
        let launched = Setup::new(2, script, &folder).node(&place, Some(1)).run();
        if !matches!(launched.result, Err(Error::Refused { .. })) {
            break launched;
        }
    };
    assert!(second.err.contains("3 ranks on 2 nodes"), "{}", second.err);
    assert_eq!(second.outcome(), Outcome::Done);
    assert_eq!(first.wait().outcome(), Outcome::Done);
}

#[test]
fn other_programs_do_not_disturb_node_0() {
    let folder = Folder::new();
    let mut place = Place::new(2);
    let first = Setup::new(1, "", &folder).first_node(&mut place).start();
    let address = (place.endpoint.host(), place.endpoint.port());
    let mut browser = TcpStream::connect(address).expect("a connection");
    browser.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("sent");
    let mut answer = Vec::new();
    // The rest of the request is not read, so that the end may be a reset.
    let _ = browser.read_to_end(&mut answer);
    drop(TcpStream::connect(address).expect("a connection"));
    let second = Setup::new(1, "", &folder).node(&place, Some(1)).start();
    assert_eq!(second.wait().outcome(), Outcome::Done);
    assert_eq!(first.wait().outcome(), Outcome::Done);
}

#[test]
fn a_node_0_that_goes_away_ends_its_nodes() {
    let folder = Folder::new();
    let place = Place::new(2);
    let script = "trap 'echo terminated; exit 0' TERM; : > $1/ready; while :; do sleep 0.01; done";
    let second = Setup::new(1, script, &folder).node(&place, Some(1)).start();
    let listener = place.listener.expect("a listener");
    let (mut stream, _) = listener.accept().expect("a connection");
    let mut hello = String::new();
    let mut reader = BufReader::new(stream.try_clone().expect("a connection"));
    reader.read_line(&mut hello).expect("a line");
    assert!(hello.contains(r#""num_local_ranks":1"#), "{hello}");
    let start = r#"{"start": {"attempt": 0, "max_restarts": 0, "node_rank": 1, "num_nodes": 2, "first_rank": 1,
        "world_size": 2, "master_addr": "127.0.0.1", "master_port": 1, "cause": null}}"#;
    writeln!(stream, "{}", start.replace('\n', " ")).expect("sent");
    folder.wait_for("ready");
    drop((stream, reader));
    let second = second.wait();
    assert_eq!(second.out.text(), "[rank 1] terminated\n");
    let Outcome::Failed(report) = second.outcome() else {
        panic!("no failure");
    };
    let text = report.root.to_string();
    assert!(text.starts_with("node 0 (127.0.0.1) is lost"), "{text}");
}

#[test]
fn what_is_no_launcher_is_recognised() {
    let folder = Folder::new();
    let place = Place::new(2);
    let second = Setup::new(1, "", &folder).node(&place, Some(1)).start();
    let listener = place.listener.expect("a listener");
    let (mut stream, _) = listener.accept().expect("a connection");
    stream
        .write_all(b"HTTP/1.1 400 Bad Request\r\n")
        .expect("sent");
    let error = second.wait().error();
    assert!(matches!(error, Error::NotALauncher { .. }), "{error}");
    assert!(error.is_input());
}

#[test]
fn an_order_that_makes_no_sense_is_not_followed() {
    let folder = Folder::new();
    let place = Place::new(2);
    let second = Setup::new(2, ": > $1/started", &folder)
        .node(&place, Some(1))
        .start();
    let listener = place.listener.expect("a listener");
    let (mut stream, _) = listener.accept().expect("a connection");
    let start = r#"{"start": {"attempt": 0, "max_restarts": 0, "node_rank": 1, "num_nodes": 2, "first_rank": 4294967295, "world_size": 2, "master_addr": "a", "master_port": 1, "cause": null}}"#;
    writeln!(stream, "{start}").expect("sent");
    let Outcome::Failed(report) = second.wait().outcome() else {
        panic!("no failure");
    };
    assert!(report.root.to_string().contains("makes no sense"));
    assert!(!folder.path("started").exists());
}
